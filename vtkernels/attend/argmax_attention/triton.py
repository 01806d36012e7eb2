"""A block of queries per program walks over the keys; products by `tl.dot`, the best integer key in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup


@triton.jit(do_not_specialize=["q0", "q1", "q2", "q3", "k0", "k1", "k2", "k3", "a0", "a1", "a2", "o0", "o1", "o2", "i0",
                               "i1", "heads", "rows", "keys", "width", "blocks"])
def argmax_kernel(query, q0: tl.int64, q1: tl.int64, q2: tl.int64, q3: tl.int64, key, k0: tl.int64, k1: tl.int64,
                  k2: tl.int64, k3: tl.int64, allowed, a0: tl.int64, a1: tl.int64, a2: tl.int64, out, o0: tl.int64,
                  o1: tl.int64, o2: tl.int64, indices, i0: tl.int64, i1: tl.int64, heads: tl.int64, rows: tl.int64,
                  keys: tl.int64, width: tl.int64, blocks: tl.int64, UPCAST: tl.constexpr, BLOCK_Q: tl.constexpr,
                  BLOCK_N: tl.constexpr, WIDTH: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    line = item // blocks
    batch = line // heads
    head = line % heads
    row = (item % blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q).to(tl.int64)
    dim = tl.arange(0, WIDTH).to(tl.int64)
    is_row = (row < rows)[:, None] & (dim < width)[None, :]
    q = tl.load(query + batch * q0 + head * q1 + row[:, None] * q2 + dim[None, :] * q3, mask=is_row, other=0.0)
    key += batch * k0 + head * k1
    # A rank is 2 + the order-preserving key of an allowed product, 1 for an allowed NaN, 0 for none.
    best = tl.zeros((BLOCK_Q,), tl.int64)
    chosen = tl.full((BLOCK_Q,), -1, tl.int64)
    for first in range(0, keys, BLOCK_N):
        place = first + tl.arange(0, BLOCK_N).to(tl.int64)
        is_key = place < keys
        k = tl.load(key + place[None, :] * k2 + dim[:, None] * k3, mask=is_key[None, :] & (dim < width)[:, None],
                    other=0.0)
        if UPCAST:
            products = tl.dot(q.to(tl.float32), k.to(tl.float32), input_precision="ieee")
        else:
            products = tl.dot(q, k, input_precision="ieee")
        bits = (products + 0.0).to(tl.int32, bitcast=True)  # + 0.0 turns -0 into +0
        ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648
        rank = tl.where(products != products, 1, ordered + 2)
        may = is_key[None, :] & (row < rows)[:, None]
        if allowed is not None:
            may &= tl.load(allowed + batch * a0 + row[:, None] * a1 + place[None, :] * a2, mask=may, other=0) != 0
        rank = tl.where(may, rank, 0)
        tile_best = tl.max(rank, 1)
        tile_place = tl.min(tl.where(rank == tile_best[:, None], place[None, :], keys), 1)
        chosen = tl.where(tile_best > best, tile_place, chosen)
        best = tl.maximum(best, tile_best)
    found = is_row & (chosen >= 0)[:, None]
    copied = tl.load(key + chosen[:, None] * k2 + dim[None, :] * k3, mask=found, other=0.0)
    tl.store(out + batch * o0 + head * o1 + row[:, None] * o2 + dim[None, :], copied, mask=is_row)
    tl.store(indices + batch * i0 + head * i1 + row, chosen, mask=row < rows)


def argmax_attention_out(query: Tensor, key: Tensor, *, allowed: Tensor | None = None, out: Tensor,
                         out_indices: Tensor) -> None:
    batch, heads, rows, d = query.shape
    if batch * heads * rows == 0:
        return
    config = lookup.config("argmax_attention", _triton.device_name(query.device), query.dtype, n=key.shape[2], d=d)
    blocks = triton.cdiv(rows, config["block_p"])
    mask = (None, 0, 0, 0) if allowed is None else (allowed.view(torch.uint8), *allowed.stride())
    _triton.launch(argmax_kernel, batch * heads * blocks, query.device, query, *query.stride(), key, *key.stride(),
                   *mask, out, *out.stride()[:3], out_indices, *out_indices.stride()[:2], heads, rows, key.shape[2], d,
                   blocks, UPCAST=_triton.interpreted(), BLOCK_Q=config["block_p"], BLOCK_N=config["block_n"],
                   WIDTH=max(16, _triton.pow2_at_least(d)), num_warps=config["num_warps"],
                   num_stages=config["num_stages"])
