"""A program sums a few rows, block by block."""

import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup
from ..prototype_scores.triton import FLT_MAX, FLT_MIN
from ..temporal_scores.triton import load_tile

LOG_SCALE = tl.constexpr(128.0)  # x ln x / 128 is in range for every x


@triton.jit(do_not_specialize=["row_stride", "dim_stride", "count", "d"])
def statistics_kernel(rows, row_stride: tl.int64, dim_stride: tl.int64, count: tl.int64, d: tl.int32, l1, l2, entropy,
                      FAST: tl.constexpr, EVEN_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = row < count
    if FAST:  # rows contiguous and on 16-byte boundaries; hints on the results of operations survive inlining
        WIDE: tl.constexpr = 128 // rows.dtype.element_ty.primitive_bitwidth
        rows = tl.multiple_of(rows, 16)
        row_stride = row_stride // WIDE * WIDE
    rows += row[:, None] * row_stride
    size = tl.zeros((BLOCK_N,), tl.float32)
    squares = tl.zeros((BLOCK_N,), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    weighted = tl.zeros((BLOCK_N,), tl.float32)
    for block in range(0, d, BLOCK_D):
        x = load_tile(rows, dim_stride, block, d, is_row, FAST, EVEN_D, BLOCK_D)
        size += tl.sum(tl.abs(x), 1)
        squares += tl.sum(x * x, 1)
        counts = x >= FLT_MIN
        total += tl.sum(tl.where(counts, x, 0.0), 1)
        weighted += tl.sum(tl.where(counts, x * (tl.log(tl.where(counts, x, 1.0)) / LOG_SCALE), 0.0), 1)
    spread = tl.log(tl.where(total > 0, total, 1.0)) - weighted / tl.where(total > 0, total, 1.0) * LOG_SCALE
    spread = tl.where(spread > 0, spread, 0.0)
    tl.store(l1 + row, size, mask=is_row)
    tl.store(l2 + row, tl.sqrt(squares), mask=is_row)
    tl.store(entropy + row, tl.where(size <= FLT_MAX, spread, float("nan")), mask=is_row)


def row_statistics_out(rows: Tensor, *, l1: Tensor, l2: Tensor, entropy: Tensor) -> None:
    if l1.numel() == 0:
        return
    d = rows.shape[-1]
    count = l1.numel()
    flat = rows.reshape(count, d)  # a copy where the leading dimensions have no common stride
    config = lookup.config("row_statistics", _triton.device_name(rows.device), rows.dtype, d=d)
    block_d = min(config["block_d"], _triton.pow2_at_least(max(d, 16)))
    block_n = config["block_d"] // block_d
    outs = [t if t.is_contiguous() else t.new_empty(t.shape) for t in (l1, l2, entropy)]
    _triton.launch(statistics_kernel, triton.cdiv(count, block_n), rows.device, flat, *flat.stride(), count, d, *outs,
                   FAST=_triton.aligned16(flat, flat.stride(0)), EVEN_D=d % block_d == 0, BLOCK_N=block_n,
                   BLOCK_D=block_d, num_warps=config["num_warps"], num_stages=config["num_stages"])
    for t, out in zip((l1, l2, entropy), outs, strict=True):
        if t is not out:
            t.copy_(out)
