"""One program per row: an interval search as in `select_topk`, on sums of integer weights in place of counts."""

import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup
from ..allocate_budget.triton import integer_weights, positive_bits
from ..select_threshold.triton import count_above, finish_row, launch_prefix
from ..select_topk.triton import UNREACHED
from .reference import fixed_point


@triton.jit
def weight_from(scores, stride, n, bits, weights, first, second, third, top, BLOCK: tl.constexpr):
    """Weight of the scores whose bits are at least each of three numbers; the first block is at hand."""
    sum1 = tl.where(bits >= first, weights, 0)
    sum2 = tl.where(bits >= second, weights, 0)
    sum3 = tl.where(bits >= third, weights, 0)
    for start in range(BLOCK, n, BLOCK):
        chunk = positive_bits(scores, stride, start, n, BLOCK)
        weight = integer_weights(chunk, top)
        sum1 += tl.where(chunk >= first, weight, 0)
        sum2 += tl.where(chunk >= second, weight, 0)
        sum3 += tl.where(chunk >= third, weight, 0)
    return tl.sum(sum1, 0), tl.sum(sum2, 0), tl.sum(sum3, 0)


@triton.jit(do_not_specialize=["scores_batch", "scores_stride", "n", "part", "min_keep", "indices_batch"])
def top_p_kernel(scores, scores_batch: tl.int64, scores_stride: tl.int64, n: tl.int64, part: tl.int64,
                 min_keep: tl.int64, indices, indices_batch: tl.int64, counts, BLOCK: tl.constexpr,
                 SINGLE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    scores += row * scores_batch
    bits = positive_bits(scores, scores_stride, 0, n, BLOCK)
    top = tl.max(bits, 0)
    for start in range(BLOCK, n, BLOCK):
        top = tl.maximum(top, tl.max(positive_bits(scores, scores_stride, start, n, BLOCK), 0))
    weights = integer_weights(bits, top)
    total = tl.sum(weights, 0)
    for start in range(BLOCK, n, BLOCK):
        total += tl.sum(integer_weights(positive_bits(scores, scores_stride, start, n, BLOCK), top), 0)
    # ceil(total * part / 2**31) without leaving 64 bits
    need = (total >> 31) * part + (((total & 0x7FFFFFFF) * part + 0x7FFFFFFF) >> 31)

    # Keeps the weight from `low` on >= need > the weight from `high` on. The keys of positive scores are their bits.
    low = tl.zeros((), tl.int64)
    high = top.to(tl.int64) + 1
    above = tl.zeros((), tl.int64)
    while high - low > 1:
        step = tl.maximum((high - low) // 4, 1)
        first, second, third = low + step, low + 2 * step, low + 3 * step
        weight1, weight2, weight3 = weight_from(scores, scores_stride, n, bits, weights, first, second, third, top,
                                                BLOCK)
        if weight3 >= need:
            low = third
        elif weight2 >= need:
            low = second
            high = third
            above = weight3
        elif weight1 >= need:
            low = first
            high = second
            above = weight2
        else:
            high = first
            above = weight1
    cut = low.to(tl.int32)
    ties = tl.zeros((), tl.int64)
    count = tl.zeros((), tl.int64)
    if total > 0:
        each = integer_weights(cut, top)
        ties = (need - above + each - 1) // each
        count = count_above(scores, scores_stride, n, cut, True, BLOCK) + ties
    else:
        cut = tl.full((), UNREACHED, tl.int32)
    count = finish_row(scores, scores_stride, n, cut, ties, count, tl.minimum(min_keep, n),
                       indices + row * indices_batch, True, BLOCK, SINGLE)
    tl.store(counts + row, count)


def select_top_p_out(scores: Tensor, p: float, *, min_keep: int = 1, out_indices: Tensor, out_counts: Tensor,
                     out_cu_seqlens: Tensor) -> None:
    batch, n = scores.shape
    if batch > 0:
        config = lookup.config("select_top_p", _triton.device_name(scores.device), scores.dtype, n=n)
        block = config["select_block"]
        _triton.launch(top_p_kernel, batch, scores.device, scores, *scores.stride(), n, fixed_point(p), min_keep,
                       out_indices, out_indices.stride(0), out_counts, BLOCK=block, SINGLE=n <= block,
                       num_warps=config["num_warps"], num_stages=config["num_stages"])
    launch_prefix(out_counts, out_cu_seqlens)
