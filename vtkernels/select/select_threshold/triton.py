"""One program per row counts and writes what passes; a second launch adds up the counts."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup
from ..select_topk.triton import UNREACHED, emit, fill, key_of, selection_keys, threshold

PREFIX_BLOCK = 1024


@triton.jit
def finish_row(scores, stride, n, cut, ties, count, min_keep, indices, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
               SINGLE: tl.constexpr):
    """Write what a cut selects, or the best `min_keep` where it selects fewer, then -1. Returns how many."""
    if count < min_keep:
        cut, ties = threshold(scores, stride, n, min_keep, LARGEST, BLOCK, SINGLE)
        count = min_keep
    emit(scores, stride, n, cut, ties, indices, tl.zeros((), tl.int64), n, LARGEST, BLOCK)
    fill(indices, count, n, BLOCK)
    return count


@triton.jit
def count_above(scores, stride, n, cut, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    count = tl.zeros((), tl.int64)
    for start in range(0, n, BLOCK):
        count += tl.sum((selection_keys(scores, stride, start, n, LARGEST, BLOCK) > cut).to(tl.int32), 0)
    return count


@triton.jit(do_not_specialize=["scores_batch", "scores_stride", "n", "limit_bits", "limits_stride", "min_keep",
                               "indices_batch"])
def threshold_kernel(scores, scores_batch: tl.int64, scores_stride: tl.int64, n: tl.int64, limit_bits: tl.int64,
                     limits, limits_stride: tl.int64, min_keep: tl.int64, indices, indices_batch: tl.int64, counts,
                     LARGEST: tl.constexpr, BLOCK: tl.constexpr, SINGLE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    scores += row * scores_batch
    if limits is not None:
        limit = tl.load(limits + row * limits_stride)
    else:
        limit = limit_bits.to(tl.int32).to(tl.float32, bitcast=True)
    cut = tl.where(limit != limit, UNREACHED, key_of(limit, LARGEST))
    count = count_above(scores, scores_stride, n, cut, LARGEST, BLOCK)
    count = finish_row(scores, scores_stride, n, cut, tl.zeros((), tl.int64), count, min_keep,
                       indices + row * indices_batch, LARGEST, BLOCK, SINGLE)
    tl.store(counts + row, count)


@triton.jit(do_not_specialize=["batch"])
def prefix_kernel(counts, cu_seqlens, batch: tl.int64, BLOCK: tl.constexpr):
    total = tl.zeros((), tl.int32)
    tl.store(cu_seqlens, 0)
    for start in range(0, batch, BLOCK):
        row = start + tl.arange(0, BLOCK).to(tl.int64)
        count = tl.load(counts + row, mask=row < batch, other=0)
        tl.store(cu_seqlens + row + 1, total + tl.cumsum(count, 0), mask=row < batch)
        total += tl.sum(count, 0)


def launch_prefix(counts: Tensor, cu_seqlens: Tensor) -> None:
    _triton.launch(prefix_kernel, 1, counts.device, counts, cu_seqlens, counts.shape[0], BLOCK=PREFIX_BLOCK,
                   num_warps=4, num_stages=1)


def select_threshold_out(scores: Tensor, threshold: float, *, largest: bool = True, min_keep: int = 0,
                         thresholds: Tensor | None = None, out_indices: Tensor, out_counts: Tensor,
                         out_cu_seqlens: Tensor) -> None:
    batch, n = scores.shape
    if batch > 0:
        config = lookup.config("select_threshold", _triton.device_name(scores.device), scores.dtype, n=n)
        block = config["select_block"]
        limit_bits = torch.tensor(threshold, dtype=torch.float32).view(torch.int32).item()
        _triton.launch(threshold_kernel, batch, scores.device, scores, *scores.stride(), n, limit_bits, thresholds,
                       0 if thresholds is None else thresholds.stride(0), min_keep, out_indices,
                       out_indices.stride(0), out_counts, LARGEST=largest, BLOCK=block, SINGLE=n <= block,
                       num_warps=config["num_warps"], num_stages=config["num_stages"])
    launch_prefix(out_counts, out_cu_seqlens)
