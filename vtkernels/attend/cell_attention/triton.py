"""A block of cells per program: a running softmax over the keys of each cell, keys and values read once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup


@triton.jit(do_not_specialize=["q0", "q1", "q2", "q3", "k0", "k1", "k2", "k3", "v0", "v1", "v2", "v3", "o0", "o1", "o2",
                               "heads", "cells", "columns", "cell", "width", "blocks", "scale"])
def cell_kernel(query, q0: tl.int64, q1: tl.int64, q2: tl.int64, q3: tl.int64, key, k0: tl.int64, k1: tl.int64,
                k2: tl.int64, k3: tl.int64, value, v0: tl.int64, v1: tl.int64, v2: tl.int64, v3: tl.int64, out,
                o0: tl.int64, o1: tl.int64, o2: tl.int64, heads: tl.int64, cells: tl.int64, columns: tl.int64,
                cell: tl.int64, width: tl.int64, blocks: tl.int64, scale: tl.float32, BLOCK: tl.constexpr,
                WIDTH: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    row = item // blocks
    batch = row // heads
    head = row % heads
    place = (item % blocks) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    dim = tl.arange(0, WIDTH).to(tl.int64)
    inside = (place < cells)[:, None] & (dim < width)[None, :]
    q = tl.load(query + batch * q0 + head * q1 + place[:, None] * q2 + dim[None, :] * q3, mask=inside,
                other=0.0).to(tl.float32)
    line = columns * cell
    top = place // columns * cell * line + place % columns * cell
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    for i in range(0, cell * cell):
        token = (top + i // cell * line + i % cell)[:, None]
        k = tl.load(key + batch * k0 + head * k1 + token * k2 + dim[None, :] * k3, mask=inside, other=0.0)
        v = tl.load(value + batch * v0 + head * v1 + token * v2 + dim[None, :] * v3, mask=inside, other=0.0)
        logit = tl.sum(q * k.to(tl.float32), 1) * scale
        higher = tl.where((logit > highest) | (logit != logit), logit, highest)
        # Two equal infinities differ by nothing: -inf before the first key, which has no weight yet.
        keep = tl.where(highest == higher, 1.0, tl.exp(highest - higher))
        weight = tl.exp(logit - higher)
        total = total * keep[:, None] + weight[:, None] * v.to(tl.float32)
        mass = mass * keep + weight
        highest = higher
    result = total / mass[:, None]
    tl.store(out + batch * o0 + head * o1 + place[:, None] * o2 + dim[None, :], result, mask=inside)


def cell_attention_out(query: Tensor, key: Tensor, value: Tensor, grid_width: int, cell: int, *,
                       scale: float | None = None, out: Tensor) -> None:
    batch, heads, cells, d = query.shape
    if out.numel() == 0:
        return
    config = lookup.config("cell_attention", _triton.device_name(query.device), query.dtype, n=cells, d=d)
    block = config["block_n"]
    blocks = triton.cdiv(cells, block)
    factor = d ** -0.5 if scale is None else scale
    _triton.launch(cell_kernel, batch * heads * blocks, query.device, query, *query.stride(), key, *key.stride(), value,
                   *value.stride(), out, *out.stride()[:3], heads, cells, grid_width // cell, cell, d, blocks,
                   float(torch.tensor(factor, dtype=torch.float32)), BLOCK=block, WIDTH=_triton.pow2_at_least(d),
                   num_warps=config["num_warps"], num_stages=config["num_stages"])
