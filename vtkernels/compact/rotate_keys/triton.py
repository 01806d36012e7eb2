"""One program for a block of tokens of some heads: angles once for all of them."""

import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ..._checks import kv_token_dim
from ...tuning import lookup

QUARTERS_PER_RADIAN = tl.constexpr(0.63661977236758134308)
RADIANS_PER_QUARTER = tl.constexpr(1.57079632679489661923)


@triton.jit
def _cos_sin(angle):
    """float32 cosine and sine of float64 angles of any size: polynomials on a quarter turn around 0."""
    quarters = angle * QUARTERS_PER_RADIAN
    whole = tl.floor(quarters + 0.5)
    x = ((quarters - whole) * RADIANS_PER_QUARTER).to(tl.float32)
    quadrant = (whole - 4.0 * tl.floor(whole * 0.25)).to(tl.int32)
    z = x * x
    sin = x + x * z * (-1.6666654611e-1 + z * (8.3321608736e-3 + z * -1.9515295891e-4))
    cos = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))
    odd = (quadrant & 1) == 1
    c = tl.where(odd, sin, cos)
    s = tl.where(odd, cos, sin)
    return tl.where((quadrant == 1) | (quadrant == 2), -c, c), tl.where(quadrant >= 2, -s, s)


@triton.jit(do_not_specialize=["key_batch", "key_head", "key_token", "key_dim", "delta_axis", "delta_batch",
                               "delta_token", "freq_axis", "freq_pair", "out_batch", "out_head", "out_token", "heads",
                               "tokens", "pairs", "width", "head_blocks", "token_blocks"])
def rotate_kernel(keys, key_batch: tl.int64, key_head: tl.int64, key_token: tl.int64, key_dim: tl.int64, deltas,
                  delta_axis: tl.int64, delta_batch: tl.int64, delta_token: tl.int64, inv_freq, freq_axis: tl.int64,
                  freq_pair: tl.int64, out, out_batch: tl.int64, out_head: tl.int64, out_token: tl.int64,
                  heads: tl.int64, tokens: tl.int64, pairs: tl.int64, width: tl.int64, head_blocks: tl.int64,
                  token_blocks: tl.int64, AXES: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_N: tl.constexpr,
                  BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    first_head = item % head_blocks * BLOCK_H
    item = item // head_blocks
    token = item % token_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    batch = item // token_blocks
    in_row = token < tokens
    for first in range(0, pairs, BLOCK_P):
        pair = first + tl.arange(0, BLOCK_P).to(tl.int64)
        inside = in_row[:, None] & (pair < pairs)[None, :]
        angle = tl.zeros((BLOCK_N, BLOCK_P), tl.float64)
        for axis in tl.static_range(AXES):
            delta_row = deltas + axis * delta_axis + batch * delta_batch
            delta = tl.load(delta_row + token * delta_token, mask=in_row, other=0)
            freq = tl.load(inv_freq + axis * freq_axis + pair * freq_pair, mask=pair < pairs, other=0.0)
            angle += delta.to(tl.float64)[:, None] * freq.to(tl.float64)[None, :]
        cos, sin = _cos_sin(angle)
        turns = angle != 0.0
        if INTERLEAVED:
            x_dim = 2 * pair
            y_dim = x_dim + 1
        else:
            x_dim = pair
            y_dim = pair + pairs
        for head in range(first_head, tl.minimum(first_head + BLOCK_H, heads)):
            source = keys + (batch * key_batch + head * key_head) + (token * key_token)[:, None]
            target = out + (batch * out_batch + head * out_head) + (token * out_token)[:, None]
            x_raw = tl.load(source + (x_dim * key_dim)[None, :], mask=inside, other=0.0)
            y_raw = tl.load(source + (y_dim * key_dim)[None, :], mask=inside, other=0.0)
            x = x_raw.to(tl.float32)
            y = y_raw.to(tl.float32)
            tl.debug_barrier()  # the output may be the keys, and another thread may store what this one loads
            tl.store(target + x_dim[None, :], tl.where(turns, (x * cos - y * sin).to(x_raw.dtype), x_raw), mask=inside)
            tl.store(target + y_dim[None, :], tl.where(turns, (y * cos + x * sin).to(y_raw.dtype), y_raw), mask=inside)
    for first in range(2 * pairs, width, BLOCK_P):
        dim = first + tl.arange(0, BLOCK_P).to(tl.int64)
        inside = in_row[:, None] & (dim < width)[None, :]
        for head in range(first_head, tl.minimum(first_head + BLOCK_H, heads)):
            source = keys + (batch * key_batch + head * key_head) + (token * key_token)[:, None]
            target = out + (batch * out_batch + head * out_head) + (token * out_token)[:, None]
            tl.store(target + dim[None, :], tl.load(source + (dim * key_dim)[None, :], mask=inside, other=0.0),
                     mask=inside)


def rotate_keys_out(keys: Tensor, deltas: Tensor, inv_freq: Tensor, *, interleaved: bool = False,
                    kv_layout: str = "HND", out: Tensor) -> None:
    if keys.numel() == 0:
        return
    token_dim = kv_token_dim("rotate_keys", kv_layout)
    order = (0, 3 - token_dim, token_dim, 3)
    batch, heads, tokens, width = (keys.shape[dim] for dim in order)
    pairs = inv_freq.shape[-1]
    if deltas.dim() == 2:
        deltas, inv_freq = deltas[None], inv_freq[None]
    config = lookup.config("rotate_keys", _triton.device_name(keys.device), keys.dtype, n=tokens, d=width)
    head_blocks, token_blocks = triton.cdiv(heads, config["block_h"]), triton.cdiv(tokens, config["block_n"])
    _triton.launch(rotate_kernel, batch * head_blocks * token_blocks, keys.device, keys,
                   *(keys.stride(dim) for dim in order), deltas, *deltas.stride(), inv_freq, *inv_freq.stride(), out,
                   *(out.stride(dim) for dim in order[:3]), heads, tokens, pairs, width, head_blocks, token_blocks,
                   AXES=deltas.shape[0], INTERLEAVED=interleaved, BLOCK_N=config["block_n"],
                   BLOCK_H=config["block_h"], BLOCK_P=config["block_p"], num_warps=config["num_warps"],
                   num_stages=config["num_stages"])
