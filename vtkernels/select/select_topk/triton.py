"""Selection of one row by one program: an interval search on 32-bit integer keys, then compaction in index order."""

import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup

LOWEST = tl.constexpr(-(2**31))  # the key of NaN, and of nothing else


@triton.jit
def selection_keys(scores, stride, start, n, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    """int32 keys of the scores from `start` on, larger is kept first; places past `n` look like NaN."""
    place = start + tl.arange(0, BLOCK).to(tl.int64)
    score = tl.load(scores + place * stride, mask=place < n, other=float("nan"))
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # + 0.0 turns -0 into +0
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    if not LARGEST:
        key = key ^ -1
    return tl.where(score != score, LOWEST, key)


@triton.jit
def threshold(scores, stride, n, k, LARGEST: tl.constexpr, BLOCK: tl.constexpr, SINGLE: tl.constexpr):
    """The key above which all are kept, and how many of those equal to it. 1 <= k <= n.

    Keeps count(key >= low) >= k > count(key >= high) = above, and cuts the interval in four by one pass over the row:
    at most 17 passes, a handful where no key ties with the last one kept.
    """
    # SINGLE: the row fits a block and stays in registers.
    keys = selection_keys(scores, stride, 0, n, LARGEST, BLOCK)
    low = tl.min(keys, 0).to(tl.int64)
    high = tl.max(keys, 0).to(tl.int64) + 1
    if not SINGLE:
        for start in range(BLOCK, n, BLOCK):
            chunk = selection_keys(scores, stride, start, n, LARGEST, BLOCK)
            low = tl.minimum(low, tl.min(chunk, 0).to(tl.int64))
            high = tl.maximum(high, tl.max(chunk, 0).to(tl.int64) + 1)
    above = tl.zeros((), tl.int64)
    while high - low > 1:
        step = tl.maximum((high - low) // 4, 1)
        first, second, third = low + step, low + 2 * step, low + 3 * step
        if SINGLE:
            hits = (keys >= first.to(tl.int32)).to(tl.int64)
            hits += (keys >= second.to(tl.int32)).to(tl.int64) << 21
            hits += (keys >= third.to(tl.int32)).to(tl.int64) << 42
            counts = tl.sum(hits, 0)
            count1, count2, count3 = counts & 0x1FFFFF, (counts >> 21) & 0x1FFFFF, counts >> 42
        else:
            hits1 = tl.zeros((BLOCK,), tl.int32)
            hits2 = tl.zeros((BLOCK,), tl.int32)
            hits3 = tl.zeros((BLOCK,), tl.int32)
            for start in range(0, n, BLOCK):
                chunk = selection_keys(scores, stride, start, n, LARGEST, BLOCK)
                hits1 += (chunk >= first.to(tl.int32)).to(tl.int32)
                hits2 += (chunk >= second.to(tl.int32)).to(tl.int32)
                hits3 += (chunk >= third.to(tl.int32)).to(tl.int32)
            count1 = tl.sum(hits1, 0).to(tl.int64)
            count2 = tl.sum(hits2, 0).to(tl.int64)
            count3 = tl.sum(hits3, 0).to(tl.int64)
        if (count1 == k) | (count2 == k) | (count3 == k):
            high = tl.where(count1 == k, first, tl.where(count2 == k, second, third))
            low = high - 1
            above = tl.zeros((), tl.int64) + k
        elif count3 >= k:
            low = third
        elif count2 >= k:
            low = second
            high = third
            above = count3
        elif count1 >= k:
            low = first
            high = second
            above = count2
        else:
            high = first
            above = count1
    return low.to(tl.int32), k - above


@triton.jit
def select_row(scores, stride, n, k, indices, offset, limit, LARGEST: tl.constexpr,
               BLOCK: tl.constexpr, SINGLE: tl.constexpr):
    """Write `offset` + the positions of the k best of n scores, ascending, and only the first `limit` of them."""
    if k > 0:
        cut, ties = threshold(scores, stride, n, k, LARGEST, BLOCK, SINGLE)
        done = tl.zeros((), tl.int64)
        for start in range(0, n, BLOCK):
            place = start + tl.arange(0, BLOCK).to(tl.int64)
            key = selection_keys(scores, stride, start, n, LARGEST, BLOCK)
            better = key > cut
            tied = (key == cut) & (place < n)
            flags = (better.to(tl.int32) << 16) + tied.to(tl.int32)
            seen = tl.cumsum(flags, 0)
            tied_seen = (seen & 0xFFFF).to(tl.int64)
            rank = done + (seen >> 16) + tl.minimum(tied_seen, ties) - 1
            kept = (better | (tied & (tied_seen <= ties))) & (rank < limit)
            tl.store(indices + rank, offset + place, mask=kept)
            totals = tl.sum(flags, 0)
            tied_total = (totals & 0xFFFF).to(tl.int64)
            done += (totals >> 16) + tl.minimum(tied_total, ties)
            ties -= tl.minimum(tied_total, ties)


@triton.jit(do_not_specialize=["scores_batch", "scores_stride", "n", "k", "out_batch"])
def select_kernel(scores, scores_batch: tl.int64, scores_stride: tl.int64, n: tl.int64, k: tl.int64, out,
                  out_batch: tl.int64, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
                  SINGLE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    select_row(scores + row * scores_batch, scores_stride, n, k, out + row * out_batch,
               tl.zeros((), tl.int64), k, LARGEST, BLOCK, SINGLE)


def select_topk_out(scores: Tensor, k: int, *, largest: bool = True, out: Tensor) -> None:
    batch, n = scores.shape
    if batch == 0 or k == 0:
        return
    config = lookup.config("select_topk", _triton.device_name(scores.device), scores.dtype, n=n)
    block = config["select_block"]
    _triton.launch(select_kernel, batch, scores.device, scores, *scores.stride(), n, k, out, out.stride(0),
                   LARGEST=largest, BLOCK=block, SINGLE=n <= block, num_warps=config["num_warps"],
                   num_stages=config["num_stages"])
