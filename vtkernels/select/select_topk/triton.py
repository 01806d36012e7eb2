"""Selection of one row by one program: an interval search on 32-bit integer keys, then compaction in index order.

Masks travel as a tuple (protected, offset, stride, excluded, offset, stride, taken, offset), each a pointer to bytes or
None, with the offset of the row. A token that may still be selected stands on level 1, a protected one on level 2, one
that is taken for certain on level 3, an excluded one on level 0. The levels above the last one kept are kept whole.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup

LOWEST = tl.constexpr(-(2**31))     # the key of NaN, and of nothing else
UNREACHED = tl.constexpr(2**31 - 1)  # above every key
RANK_TILE = 32
RANK_PROGRAMS = 64


@triton.jit
def standing(place, n, masks):
    """int32 levels of the tokens at `place`; places past `n` are excluded."""
    inside = place < n
    level = inside.to(tl.int32)
    if masks[0] is not None:
        protected = tl.load(masks[0] + masks[1] + place * masks[2], mask=inside, other=0)
        level += (protected != 0).to(tl.int32)
    if masks[6] is not None:
        level = tl.where(tl.load(masks[6] + masks[7] + place, mask=inside, other=0) != 0, 3, level)
    if masks[3] is not None:
        excluded = tl.load(masks[3] + masks[4] + place * masks[5], mask=inside, other=0)
        level = tl.where(excluded != 0, 0, level)
    return level


@triton.jit
def key_of(score, LARGEST: tl.constexpr):
    """int32 keys, larger is kept first."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # + 0.0 turns -0 into +0
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    if not LARGEST:
        key = key ^ -1
    return tl.where(score != score, LOWEST, key)


@triton.jit
def selection_keys(scores, stride, start, n, LARGEST: tl.constexpr, BLOCK: tl.constexpr, masks=None, level=1):
    """Keys of the scores from `start` on; places past `n`, and those of other levels, look like NaN."""
    place = start + tl.arange(0, BLOCK).to(tl.int64)
    key = key_of(tl.load(scores + place * stride, mask=place < n, other=float("nan")), LARGEST)
    if masks is not None:
        key = tl.where(standing(place, n, masks) == level, key, LOWEST)
    return key


@triton.jit
def threshold(scores, stride, n, k, LARGEST: tl.constexpr, BLOCK: tl.constexpr, SINGLE: tl.constexpr, masks=None,
              level=1):
    """The key above which all are kept, and how many of those equal to it. 1 <= k <= n, or the tokens of a level.

    Keeps count(key >= low) >= k > count(key >= high) = above, and cuts the interval in four by one pass over the row:
    at most 17 passes, a handful where no key ties with the last one kept.
    """
    # SINGLE: the row fits a block and stays in registers.
    keys = selection_keys(scores, stride, 0, n, LARGEST, BLOCK, masks, level)
    low = tl.min(keys, 0).to(tl.int64)
    high = tl.max(keys, 0).to(tl.int64) + 1
    if not SINGLE:
        for start in range(BLOCK, n, BLOCK):
            chunk = selection_keys(scores, stride, start, n, LARGEST, BLOCK, masks, level)
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
                chunk = selection_keys(scores, stride, start, n, LARGEST, BLOCK, masks, level)
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
def emit(scores, stride, n, cut, ties, indices, offset, limit, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
         MARK: tl.constexpr = False, masks=None, level=1):
    """Write `offset` + the positions above a cut and of `ties` equal to it, ascending, the first `limit` of them.

    MARK: instead set the bytes of `indices` at these positions.
    """
    done = tl.zeros((), tl.int64)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK).to(tl.int64)
        key = selection_keys(scores, stride, start, n, LARGEST, BLOCK, masks, level)
        better = key > cut
        tied = (key == cut) & (place < n)
        if masks is not None:
            stands = standing(place, n, masks)
            better = better | (stands > level)
            tied = tied & (stands == level)
        flags = (better.to(tl.int32) << 16) + tied.to(tl.int32)
        seen = tl.cumsum(flags, 0)
        tied_seen = (seen & 0xFFFF).to(tl.int64)
        rank = done + (seen >> 16) + tl.minimum(tied_seen, ties) - 1
        kept = (better | (tied & (tied_seen <= ties))) & (rank < limit)
        if MARK:
            tl.store(indices + place, 1, mask=kept)
        else:
            tl.store(indices + rank, offset + place, mask=kept)
        totals = tl.sum(flags, 0)
        tied_total = (totals & 0xFFFF).to(tl.int64)
        done += (totals >> 16) + tl.minimum(tied_total, ties)
        ties -= tl.minimum(tied_total, ties)


@triton.jit
def census(n, masks, BLOCK: tl.constexpr):
    """How many tokens stand on the levels 1, 2 and 3."""
    ordinary = tl.zeros((), tl.int64)
    protected = tl.zeros((), tl.int64)
    taken = tl.zeros((), tl.int64)
    for start in range(0, n, BLOCK):
        stands = standing(start + tl.arange(0, BLOCK).to(tl.int64), n, masks)
        ordinary += tl.sum((stands == 1).to(tl.int32), 0)
        protected += tl.sum((stands == 2).to(tl.int32), 0)
        taken += tl.sum((stands == 3).to(tl.int32), 0)
    return ordinary, protected, taken


@triton.jit
def select_row(scores, stride, n, k, indices, offset, limit, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
               SINGLE: tl.constexpr, MARK: tl.constexpr = False, masks=None):
    """Emit the k best of n scores, or as many as the masks leave. Returns how many."""
    if masks is None:
        if k > 0:
            cut, ties = threshold(scores, stride, n, k, LARGEST, BLOCK, SINGLE)
            emit(scores, stride, n, cut, ties, indices, offset, limit, LARGEST, BLOCK, MARK)
    else:
        ordinary, protected, taken = census(n, masks, BLOCK)
        k = tl.minimum(k, ordinary + protected + taken)
        wanted = k - taken
        level = tl.where(wanted <= protected, 2, 1)
        wanted = tl.where(wanted <= protected, wanted, wanted - protected)
        cut = tl.full((), UNREACHED, tl.int32)
        ties = tl.zeros((), tl.int64)
        if wanted > 0:
            cut, ties = threshold(scores, stride, n, wanted, LARGEST, BLOCK, SINGLE, masks, level)
        emit(scores, stride, n, cut, ties, indices, offset, limit, LARGEST, BLOCK, MARK, masks, level)
    return k


@triton.jit
def fill(indices, start, end, BLOCK: tl.constexpr):
    """indices[start .. end] = -1"""
    for first in range(start, end, BLOCK):
        place = first + tl.arange(0, BLOCK).to(tl.int64)
        tl.store(indices + place, -1, mask=place < end)


@triton.jit
def rank_row(scores, stride, chosen, k, out, offset, limit, part, parts, LARGEST: tl.constexpr, TILE: tl.constexpr,
             masks=None):
    """out[rank] = `offset` + chosen, best first, for every parts-th tile of the k chosen positions; -1 stays behind."""
    for start in range(part * TILE, k, parts * TILE):
        mine = start + tl.arange(0, TILE).to(tl.int64)
        position = tl.load(chosen + mine, mask=mine < k, other=-1)
        key = rank_key(scores, stride, position, LARGEST, masks)
        ahead = tl.zeros((TILE,), tl.int32)
        for other_start in range(0, k, TILE):
            other = other_start + tl.arange(0, TILE).to(tl.int64)
            other_position = tl.load(chosen + other, mask=other < k, other=-1)
            other_key = rank_key(scores, stride, other_position, LARGEST, masks)
            before = (other_key[None, :] == key[:, None]) & (other[None, :] < mine[:, None])
            before = before | (other_key[None, :] > key[:, None])
            ahead += tl.sum((before & (other_position >= 0)[None, :]).to(tl.int32), 1)
        rank = tl.where(position >= 0, ahead.to(tl.int64), mine)
        tl.store(out + rank, tl.where(position >= 0, position + offset, -1), mask=(mine < k) & (rank < limit))


@triton.jit
def rank_key(scores, stride, position, LARGEST: tl.constexpr, masks):
    key = key_of(tl.load(scores + position * stride, mask=position >= 0, other=0.0), LARGEST).to(tl.int64)
    if masks is not None:
        key += standing(position, tl.where(position >= 0, position + 1, position), masks).to(tl.int64) << 32
    return key


@triton.jit(do_not_specialize=["scores_batch", "scores_stride", "n", "k", "ks_stride", "protected_batch",
                               "protected_stride", "excluded_batch", "excluded_stride", "taken_batch", "out_batch"])
def select_kernel(scores, scores_batch: tl.int64, scores_stride: tl.int64, n: tl.int64, k: tl.int64, ks,
                  ks_stride: tl.int64, protected, protected_batch: tl.int64, protected_stride: tl.int64, excluded,
                  excluded_batch: tl.int64, excluded_stride: tl.int64, taken, taken_batch: tl.int64, out,
                  out_batch: tl.int64, LARGEST: tl.constexpr, BLOCK: tl.constexpr, SINGLE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    scores += row * scores_batch
    out += row * out_batch
    count = k
    if ks is not None:
        count = tl.minimum(tl.maximum(tl.load(ks + row * ks_stride).to(tl.int64), 0), k)
    offset = tl.zeros((), tl.int64)
    if (protected is not None) | (excluded is not None) | (taken is not None):
        masks = (protected, row * protected_batch, protected_stride, excluded, row * excluded_batch, excluded_stride,
                 taken, row * taken_batch)
        count = select_row(scores, scores_stride, n, count, out, offset, count, LARGEST, BLOCK, SINGLE, False, masks)
    else:
        select_row(scores, scores_stride, n, count, out, offset, count, LARGEST, BLOCK, SINGLE)
    if (ks is not None) | (excluded is not None):
        fill(out, count, k, BLOCK)


@triton.jit(do_not_specialize=["scores_batch", "scores_stride", "k", "protected_batch", "protected_stride",
                               "out_batch", "parts"])
def rank_kernel(scores, scores_batch: tl.int64, scores_stride: tl.int64, k: tl.int64, chosen, protected,
                protected_batch: tl.int64, protected_stride: tl.int64, out, out_batch: tl.int64, parts: tl.int64,
                LARGEST: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) // parts
    part = tl.program_id(0).to(tl.int64) % parts
    scores += row * scores_batch
    offset = tl.zeros((), tl.int64)
    if protected is not None:
        masks = (protected, row * protected_batch, protected_stride, None, offset, offset, None, offset)
        rank_row(scores, scores_stride, chosen + row * k, k, out + row * out_batch, offset, k, part, parts, LARGEST,
                 TILE, masks)
    else:
        rank_row(scores, scores_stride, chosen + row * k, k, out + row * out_batch, offset, k, part, parts, LARGEST,
                 TILE)


def mask_arguments(mask: Tensor | None) -> tuple:
    """Bytes of a [B, N] or [N] mask, and its strides."""
    if mask is None:
        return (None, 0, 0)
    return (mask.view(torch.uint8), mask.stride(0) if mask.dim() == 2 else 0, mask.stride(-1))


def rank_parts(k: int) -> int:
    """Programs that share the ranking of k tokens."""
    return min(RANK_PROGRAMS, triton.cdiv(k, RANK_TILE))


def select_rows(scores: Tensor, k: int, largest: bool, ks: Tensor | None, protected: Tensor | None,
                excluded: Tensor | None, taken: Tensor | None, order: str, out: Tensor, config: dict) -> None:
    """Select from every row into `out`; what is `taken` already, contiguous bytes, is selected in any case."""
    batch, n = scores.shape
    if batch == 0 or k == 0:
        return
    block, by_score = config["select_block"], order == "score"
    chosen = torch.empty(batch, k, dtype=torch.int64, device=scores.device) if by_score else out
    _triton.launch(select_kernel, batch, scores.device, scores, *scores.stride(), n, k, ks,
                   0 if ks is None else ks.stride(0), *mask_arguments(protected), *mask_arguments(excluded), taken, n,
                   chosen, chosen.stride(0), LARGEST=largest, BLOCK=block, SINGLE=n <= block,
                   num_warps=config["num_warps"], num_stages=config["num_stages"])
    if by_score:
        parts = rank_parts(k)
        _triton.launch(rank_kernel, batch * parts, scores.device, scores, *scores.stride(), k, chosen,
                       *mask_arguments(protected), out, out.stride(0), parts, LARGEST=largest, TILE=RANK_TILE,
                       num_warps=4, num_stages=1)


def select_topk_out(scores: Tensor, k: int, *, largest: bool = True, ks: Tensor | None = None,
                    protected: Tensor | None = None, excluded: Tensor | None = None, order: str = "index",
                    out: Tensor) -> None:
    config = lookup.config("select_topk", _triton.device_name(scores.device), scores.dtype, n=scores.shape[1])
    select_rows(scores, k, largest, ks, protected, excluded, None, order, out, config)
