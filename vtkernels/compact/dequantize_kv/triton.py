"""One launch for each class: the rows that it stands for, and the zeros of tokens of no class by the first one."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup
from ..quantize_kv.reference import flag_bad_tokens
from .reference import owners


@triton.jit(do_not_specialize=["owner_batch", "code_batch", "code_head", "code_row", "code_dim", "params_batch",
                               "params_head", "params_row", "params_dim", "byte_batch", "byte_head", "byte_row",
                               "byte_dim", "range_batch", "range_head", "range_row", "range_dim", "scale_batch",
                               "scale_head", "scale_dim", "key_batch", "key_head", "key_row", "value_batch",
                               "value_head", "value_row", "first_row", "count", "heads", "tokens", "width",
                               "bytes_in_row", "row_blocks"])
def restore_kernel(owner, owner_batch: tl.int64, key_codes, code_batch: tl.int64, code_head: tl.int64,
                   code_row: tl.int64, code_dim: tl.int64, key_params, params_batch: tl.int64, params_head: tl.int64,
                   params_row: tl.int64, params_dim: tl.int64, value_codes, byte_batch: tl.int64, byte_head: tl.int64,
                   byte_row: tl.int64, byte_dim: tl.int64, value_params, range_batch: tl.int64, range_head: tl.int64,
                   range_row: tl.int64, range_dim: tl.int64, scales, scale_batch: tl.int64, scale_head: tl.int64,
                   scale_dim: tl.int64, key, key_batch: tl.int64, key_head: tl.int64, key_row: tl.int64, value,
                   value_batch: tl.int64, value_head: tl.int64, value_row: tl.int64, first_row: tl.int64,
                   count: tl.int64, heads: tl.int64, tokens: tl.int64, width: tl.int64, bytes_in_row: tl.int64,
                   row_blocks: tl.int64, FIRST: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr,
                   BYTES: tl.constexpr):
    """A block of tokens of one head. Rows [first_row, first_row + count) of all classes are those of this one."""
    item = tl.program_id(0).to(tl.int64)
    line = item // row_blocks
    batch = line // heads
    head = line % heads
    token = item % row_blocks * ROWS + tl.arange(0, ROWS).to(tl.int64)
    byte = tl.arange(0, BYTES).to(tl.int64)
    place = tl.load(owner + batch * owner_batch + token, mask=token < tokens, other=-2)
    row = place - first_row
    ours = (row >= 0) & (row < count) & (token < tokens)
    written = ours
    if FIRST:
        written = written | (place == -1)
    there = ours[:, None] & (byte < bytes_in_row)[None, :]
    codes = key_codes + batch * code_batch + head * code_head
    key_bytes = tl.load(codes + row[:, None] * code_row + byte[None, :] * code_dim, mask=there, other=0).to(tl.int32)
    codes = value_codes + batch * byte_batch + head * byte_head
    value_bytes = tl.load(codes + row[:, None] * byte_row + byte[None, :] * byte_dim, mask=there, other=0).to(tl.int32)
    ranges = value_params + batch * range_batch + head * range_head + row * range_row
    least = tl.load(ranges, mask=ours, other=0.0)
    step = tl.load(ranges + range_dim, mask=ours, other=0.0)
    key_params += batch * params_batch + head * params_head
    scales += batch * scale_batch + head * scale_head
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    for part in tl.static_range(8 // BITS):
        column = part * bytes_in_row + byte
        inside = (byte < bytes_in_row) & (column < width)
        low = tl.load(key_params + column * params_dim, mask=inside, other=0.0)
        channel_step = tl.load(key_params + params_row + column * params_dim, mask=inside, other=0.0)
        scale = tl.load(scales + column * scale_dim, mask=inside, other=0.0)
        target = written[:, None] & inside[None, :]
        level = ((key_bytes >> (part * BITS)) & (2**BITS - 1)).to(tl.float32)
        k = tl.where(ours[:, None], low[None, :] + level * channel_step[None, :], 0.0)
        tl.store(key + token[:, None] * key_row + column[None, :], k, mask=target)
        level = ((value_bytes >> (part * BITS)) & (2**BITS - 1)).to(tl.float32)
        v = tl.where(ours[:, None], (least[:, None] + level * step[:, None]) * scale[None, :], 0.0)
        tl.store(value + token[:, None] * value_row + column[None, :], v, mask=target)


def dequantize_kv_out(key_codes: Sequence[Tensor], key_params: Sequence[Tensor], value_codes: Sequence[Tensor],
                      value_params: Sequence[Tensor], value_scales: Sequence[Tensor], indices: Sequence[Tensor],
                      bits: Sequence[int], tokens: int, *, dtype: torch.dtype, out_key: Tensor, out_value: Tensor,
                      status: Tensor | None = None) -> None:
    flag_bad_tokens(indices, tokens, status)
    if out_key.numel() == 0:
        return
    batch, heads, _, width = out_key.shape
    owner = owners(indices, tokens)
    config = lookup.config("dequantize_kv", _triton.device_name(out_key.device), dtype, d=width)
    first_row = 0
    for c, (chosen, each) in enumerate(zip(indices, bits, strict=True)):
        parts = (key_codes[c], key_params[c], value_codes[c], value_params[c], value_scales[c])
        described = [value for t in parts for value in (t, *t.stride())]
        bytes_in_row = key_codes[c].shape[-1]
        padded = _triton.pow2_at_least(bytes_in_row)
        rows = max(1, config["block_elements"] // padded)
        blocks = triton.cdiv(tokens, rows)
        count = chosen.shape[1]
        if count or c == 0:
            _triton.launch(restore_kernel, batch * heads * blocks, out_key.device, owner, owner.stride(0), *described,
                           out_key, *out_key.stride()[:3], out_value, *out_value.stride()[:3], first_row, count, heads,
                           tokens, width, bytes_in_row, blocks, FIRST=c == 0, BITS=each, ROWS=rows, BYTES=padded,
                           num_warps=config["num_warps"], num_stages=config["num_stages"])
        first_row += count
