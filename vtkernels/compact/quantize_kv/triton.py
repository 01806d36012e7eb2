"""Three launches for each class: what each chunk of rows has seen of the channels, their ranges, the codes."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup
from .reference import SMALLEST_STEP, flag_bad_tokens

MIN_STEP = tl.constexpr(SMALLEST_STEP)
FLT_MAX = tl.constexpr(float(torch.finfo(torch.float32).max))


@triton.jit
def _finish(low, high, levels: tl.constexpr):
    """Smallest value, step and its reciprocal of a range that is empty where low > high, infinite where a member was
    not finite."""
    step = (high - low) / levels
    bad = (step <= FLT_MAX) == 0
    empty = low > high
    sound = (step >= MIN_STEP) & (bad == 0) & (empty == 0)
    inverse = tl.where(sound, 1.0 / tl.where(sound, step, 1.0), 0.0)
    step = tl.where(empty, 0.0, tl.where(bad, float("nan"), tl.where(sound, step, 0.0)))
    return tl.where(empty, 0.0, tl.where(bad, float("nan"), low)), step, inverse


@triton.jit
def _level(x, low, inverse, levels: tl.constexpr):
    level = (x - low) * inverse
    level = tl.where(level > 0, level, 0.0)  # NaN is 0, too
    return (tl.where(level < levels, level, levels * 1.0) + 0.5).to(tl.int32)


@triton.jit(do_not_specialize=["key_batch", "key_head", "key_row", "key_dim", "value_batch", "value_head", "value_row",
                               "value_dim", "index_batch", "index_stride", "heads", "tokens", "count", "width",
                               "chunks", "columns"])
def channels_kernel(key, key_batch: tl.int64, key_head: tl.int64, key_row: tl.int64, key_dim: tl.int64, value,
                    value_batch: tl.int64, value_head: tl.int64, value_row: tl.int64, value_dim: tl.int64, indices,
                    index_batch: tl.int64, index_stride: tl.int64, seen, heads: tl.int64, tokens: tl.int64,
                    count: tl.int64, width: tl.int64, chunks: tl.int64, columns: tl.int64, CHUNK: tl.constexpr,
                    ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """seen [batch * heads, chunks, 3, width]: least and largest key, largest size of a value."""
    item = tl.program_id(0).to(tl.int64)
    column = item % columns * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    chunk = item // columns % chunks
    line = item // columns // chunks
    batch = line // heads
    head = line % heads
    inside = column < width
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    largest = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, CHUNK, ROWS):
        row = chunk * CHUNK + first + tl.arange(0, ROWS).to(tl.int64)
        token = tl.load(indices + batch * index_batch + row * index_stride, mask=row < count, other=-1).to(tl.int64)
        found = ((token >= 0) & (token < tokens))[:, None] & inside[None, :]
        k = tl.load(key + token[:, None] * key_row + column[None, :] * key_dim, mask=found, other=0.0).to(tl.float32)
        v = tl.load(value + token[:, None] * value_row + column[None, :] * value_dim, mask=found,
                    other=0.0).to(tl.float32)
        finite = tl.abs(k) <= FLT_MAX
        low = tl.minimum(low, tl.min(tl.where(found, tl.where(finite, k, float("-inf")), float("inf")), 0))
        high = tl.maximum(high, tl.max(tl.where(found, tl.where(finite, k, float("inf")), float("-inf")), 0))
        size = tl.abs(v)
        largest = tl.maximum(largest, tl.max(tl.where(size <= FLT_MAX, size, 0.0), 0))
    seen += (line * chunks + chunk) * 3 * width + column
    tl.store(seen, low, mask=inside)
    tl.store(seen + width, high, mask=inside)
    tl.store(seen + 2 * width, largest, mask=inside)


@triton.jit(do_not_specialize=["params_batch", "params_head", "params_row", "scale_batch", "scale_head", "heads",
                               "width", "chunks", "columns"])
def ranges_kernel(seen, params, params_batch: tl.int64, params_head: tl.int64, params_row: tl.int64, scales,
                  scale_batch: tl.int64, scale_head: tl.int64, heads: tl.int64, width: tl.int64, chunks: tl.int64,
                  columns: tl.int64, LEVELS: tl.constexpr, BLOCK: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    column = item % columns * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    line = item // columns
    batch = line // heads
    head = line % heads
    inside = column < width
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    largest = tl.zeros((BLOCK,), tl.float32)
    seen += line * chunks * 3 * width + column
    for chunk in range(chunks):
        part = seen + chunk * 3 * width
        low = tl.minimum(low, tl.load(part, mask=inside, other=0.0))
        high = tl.maximum(high, tl.load(part + width, mask=inside, other=0.0))
        largest = tl.maximum(largest, tl.load(part + 2 * width, mask=inside, other=0.0))
    least, step, _ = _finish(low, high, LEVELS)
    params += batch * params_batch + head * params_head + column
    tl.store(params, least, mask=inside)
    tl.store(params + params_row, step, mask=inside)
    scale = tl.where(largest == 0, 1.0, tl.sqrt(largest))
    tl.store(scales + batch * scale_batch + head * scale_head + column, scale, mask=inside)


@triton.jit(do_not_specialize=["key_batch", "key_head", "key_row", "key_dim", "value_batch", "value_head", "value_row",
                               "value_dim", "index_batch", "index_stride", "params_batch", "params_head", "params_row",
                               "scale_batch", "scale_head", "code_batch", "code_head", "code_row", "byte_batch",
                               "byte_head", "byte_row", "range_batch", "range_head", "range_row", "heads", "tokens",
                               "count", "width", "bytes_in_row", "row_blocks"])
def codes_kernel(key, key_batch: tl.int64, key_head: tl.int64, key_row: tl.int64, key_dim: tl.int64, value,
                 value_batch: tl.int64, value_head: tl.int64, value_row: tl.int64, value_dim: tl.int64, indices,
                 index_batch: tl.int64, index_stride: tl.int64, params, params_batch: tl.int64, params_head: tl.int64,
                 params_row: tl.int64, scales, scale_batch: tl.int64, scale_head: tl.int64, key_codes,
                 code_batch: tl.int64, code_head: tl.int64, code_row: tl.int64, value_codes, byte_batch: tl.int64,
                 byte_head: tl.int64, byte_row: tl.int64, value_params, range_batch: tl.int64, range_head: tl.int64,
                 range_row: tl.int64, heads: tl.int64, tokens: tl.int64, count: tl.int64, width: tl.int64,
                 bytes_in_row: tl.int64, row_blocks: tl.int64, BITS: tl.constexpr, ROWS: tl.constexpr,
                 BYTES: tl.constexpr):
    """A block of rows of one head. Part i of a row, as long as its bytes, goes into bits i * BITS of them."""
    LEVELS: tl.constexpr = 2**BITS - 1
    item = tl.program_id(0).to(tl.int64)
    line = item // row_blocks
    batch = line // heads
    head = line % heads
    row = item % row_blocks * ROWS + tl.arange(0, ROWS).to(tl.int64)
    byte = tl.arange(0, BYTES).to(tl.int64)
    token = tl.load(indices + batch * index_batch + row * index_stride, mask=row < count, other=-1).to(tl.int64)
    found = (token >= 0) & (token < tokens)
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    params += batch * params_batch + head * params_head
    scales += batch * scale_batch + head * scale_head

    packed = tl.zeros((ROWS, BYTES), tl.int32)
    low = tl.full((ROWS,), float("inf"), tl.float32)
    high = tl.full((ROWS,), float("-inf"), tl.float32)
    for part in tl.static_range(8 // BITS):
        column = part * bytes_in_row + byte
        inside = (byte < bytes_in_row) & (column < width)
        there = found[:, None] & inside[None, :]
        k = tl.load(key + token[:, None] * key_row + column[None, :] * key_dim, mask=there, other=0.0).to(tl.float32)
        least = tl.load(params + column, mask=inside, other=0.0)
        step = tl.load(params + params_row + column, mask=inside, other=0.0)
        inverse = tl.where(step > 0, 1.0 / tl.where(step > 0, step, 1.0), 0.0)
        packed |= tl.where(there, _level(k, least[None, :], inverse[None, :], LEVELS), 0) << (part * BITS)
        v = tl.load(value + token[:, None] * value_row + column[None, :] * value_dim, mask=there,
                    other=0.0).to(tl.float32)
        v = v / tl.load(scales + column, mask=inside, other=1.0)[None, :]
        finite = tl.abs(v) <= FLT_MAX
        low = tl.minimum(low, tl.min(tl.where(there, tl.where(finite, v, float("-inf")), float("inf")), 1))
        high = tl.maximum(high, tl.max(tl.where(there, tl.where(finite, v, float("inf")), float("-inf")), 1))
    written = (row < count)[:, None] & (byte < bytes_in_row)[None, :]
    codes = key_codes + batch * code_batch + head * code_head
    tl.store(codes + row[:, None] * code_row + byte[None, :], packed.to(tl.uint8), mask=written)

    least, step, inverse = _finish(low, high, LEVELS)
    ranges = value_params + batch * range_batch + head * range_head + row * range_row
    tl.store(ranges, least, mask=row < count)
    tl.store(ranges + 1, step, mask=row < count)
    packed = tl.zeros((ROWS, BYTES), tl.int32)
    for part in tl.static_range(8 // BITS):
        column = part * bytes_in_row + byte
        inside = (byte < bytes_in_row) & (column < width)
        there = found[:, None] & inside[None, :]
        v = tl.load(value + token[:, None] * value_row + column[None, :] * value_dim, mask=there,
                    other=0.0).to(tl.float32)
        v = v / tl.load(scales + column, mask=inside, other=1.0)[None, :]
        packed |= tl.where(there, _level(v, least[:, None], inverse[:, None], LEVELS), 0) << (part * BITS)
    codes = value_codes + batch * byte_batch + head * byte_head
    tl.store(codes + row[:, None] * byte_row + byte[None, :], packed.to(tl.uint8), mask=written)


def quantize_kv_out(key: Tensor, value: Tensor, indices: Sequence[Tensor], bits: Sequence[int], *,
                    out_key_codes: Sequence[Tensor], out_key_params: Sequence[Tensor],
                    out_value_codes: Sequence[Tensor], out_value_params: Sequence[Tensor],
                    out_value_scales: Sequence[Tensor], status: Tensor | None = None) -> None:
    batch, heads, tokens, width = key.shape
    flag_bad_tokens(indices, tokens, status)
    lines = batch * heads
    config = lookup.config("quantize_kv", _triton.device_name(key.device), key.dtype, d=width)
    warps = {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}
    caches = (key, *key.stride(), value, *value.stride())
    outs = zip(indices, bits, out_key_codes, out_key_params, out_value_codes, out_value_params, out_value_scales,
               strict=True)
    for chosen, each, key_codes, key_params, value_codes, value_params, scales in outs:
        count = chosen.shape[1]
        if lines == 0:
            continue
        if width == 0:
            value_params.zero_()
            continue
        block = min(128, _triton.pow2_at_least(width))
        columns, chunks = triton.cdiv(width, block), triton.cdiv(count, config["chunk_rows"])
        rows = min(config["chunk_rows"], max(1, config["block_elements"] // block))
        seen = torch.empty(lines, chunks, 3, width, device=key.device)
        if count:
            _triton.launch(channels_kernel, lines * chunks * columns, key.device, *caches, chosen, *chosen.stride(),
                           seen, heads, tokens, count, width, chunks, columns, CHUNK=config["chunk_rows"], ROWS=rows,
                           BLOCK=block, **warps)
        _triton.launch(ranges_kernel, lines * columns, key.device, seen, key_params, *key_params.stride()[:3], scales,
                       *scales.stride()[:2], heads, width, chunks, columns, LEVELS=2**each - 1, BLOCK=block, **warps)
        if count:
            bytes_in_row = key_codes.shape[-1]
            padded = _triton.pow2_at_least(bytes_in_row)
            rows = max(1, config["block_elements"] // padded)
            blocks = triton.cdiv(count, rows)
            _triton.launch(codes_kernel, lines * blocks, key.device, *caches, chosen, *chosen.stride(), key_params,
                           *key_params.stride()[:3], scales, *scales.stride()[:2], key_codes, *key_codes.stride()[:3],
                           value_codes, *value_codes.stride()[:3], value_params, *value_params.stride()[:3], heads,
                           tokens, count, width, bytes_in_row, blocks, BITS=each, ROWS=rows, BYTES=padded, **warps)
