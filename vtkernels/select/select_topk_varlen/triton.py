"""Selection of packed segments, one program each. Every program reads the bounds and counts before its own."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ..._library import STATUS_BAD_SEQLENS, STATUS_BAD_SPAN, STATUS_TRUNCATED
from ...tuning import lookup
from ..select_topk.triton import RANK_TILE, census, fill, mask_arguments, rank_parts, rank_row, select_row

BAD_SEQLENS = tl.constexpr(STATUS_BAD_SEQLENS)
BAD_SPAN = tl.constexpr(STATUS_BAD_SPAN)
TRUNCATED = tl.constexpr(STATUS_TRUNCATED)
SEGMENT_BLOCK = 128


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b)


@triton.jit
def segment_at(cu_seqlens, cu_stride, k, k_stride, free, batch, tokens, index, SEGMENTS: tl.constexpr):
    """Begin, length and count of a segment, the counts before it, and status bits of all segments up to it."""
    flags = tl.zeros((), tl.int32)
    if tl.load(cu_seqlens) != 0:
        flags |= BAD_SEQLENS
    last_bound = tl.zeros((), tl.int64)
    my_begin = tl.zeros((), tl.int64)
    my_length = tl.zeros((), tl.int64)
    my_count = tl.zeros((), tl.int64)
    before = tl.zeros((), tl.int64)
    end_row = tl.minimum(index + 1, batch)
    for start in range(0, end_row, SEGMENTS):
        row = start + tl.arange(0, SEGMENTS).to(tl.int64)
        valid = row < end_row
        given_begin = tl.load(cu_seqlens + row * cu_stride, mask=valid, other=0).to(tl.int64)
        given_end = tl.load(cu_seqlens + (row + 1) * cu_stride, mask=valid, other=0).to(tl.int64)
        # Bounds never decrease: the running maximum of what was given.
        begin = tl.associative_scan(tl.minimum(tl.maximum(given_begin, 0), tokens), 0, maximum)
        begin = tl.maximum(begin, last_bound)
        end = tl.maximum(begin, tl.minimum(tl.maximum(given_end, 0), tokens))
        last_bound = tl.max(end, 0)
        if tl.sum((valid & ((begin != given_begin) | (end != given_end))).to(tl.int32), 0) > 0:
            flags |= BAD_SEQLENS
        asked = tl.load(k + row * k_stride, mask=valid, other=0).to(tl.int64)
        count = tl.minimum(tl.maximum(asked, 0), end - begin)
        if tl.sum((valid & (count != asked)).to(tl.int32), 0) > 0:
            flags |= BAD_SPAN
        if free is not None:
            count = tl.minimum(count, tl.load(free + row, mask=valid, other=0))
        mine = row == index
        my_begin += tl.sum(tl.where(mine, begin, 0), 0)
        my_length += tl.sum(tl.where(mine, end - begin, 0), 0)
        my_count += tl.sum(tl.where(mine, count, 0), 0)
        before += tl.sum(tl.where(valid & (row < index), count, 0), 0)
    return my_begin, my_length, my_count, before, flags


@triton.jit(do_not_specialize=["cu_stride", "k_stride", "batch", "tokens", "excluded_stride"])
def count_kernel(cu_seqlens, cu_stride: tl.int64, k, k_stride: tl.int64, batch: tl.int64, tokens: tl.int64, excluded,
                 excluded_stride: tl.int64, free, BLOCK: tl.constexpr, SEGMENTS: tl.constexpr):
    """How many tokens of each segment are not excluded."""
    index = tl.program_id(0).to(tl.int64)
    begin, length, _count, _before, _flags = segment_at(cu_seqlens, cu_stride, k, k_stride, None, batch, tokens,
                                                        index, SEGMENTS)
    offset = tl.zeros((), tl.int64)
    masks = (None, offset, offset, excluded, begin * excluded_stride, excluded_stride, None, offset)
    ordinary, _protected, _taken = census(length, masks, BLOCK)
    tl.store(free + index, ordinary)


@triton.jit(do_not_specialize=["scores_stride", "cu_stride", "k_stride", "batch", "tokens", "total_out",
                               "protected_stride", "excluded_stride"])
def select_varlen_kernel(scores, scores_stride: tl.int64, cu_seqlens, cu_stride: tl.int64, k, k_stride: tl.int64, free,
                         batch: tl.int64, tokens: tl.int64, total_out: tl.int64, protected, protected_stride: tl.int64,
                         excluded, excluded_stride: tl.int64, chosen, out, cu_out, status, LARGEST: tl.constexpr,
                         BLOCK: tl.constexpr, SINGLE: tl.constexpr, SEGMENTS: tl.constexpr):
    """Select into `out`, or into `chosen` at the segment's own place, relative to it, where the order is by score."""
    index = tl.program_id(0).to(tl.int64)
    begin, length, count, before, flags = segment_at(cu_seqlens, cu_stride, k, k_stride, free, batch, tokens, index,
                                                     SEGMENTS)
    scores += begin * scores_stride
    if chosen is not None:
        to = chosen + begin
        offset = tl.zeros((), tl.int64)
        limit = count
    else:
        to = out + before
        offset = begin
        limit = total_out - before
    if (protected is not None) | (excluded is not None):
        masks = (protected, begin * protected_stride, protected_stride, excluded, begin * excluded_stride,
                 excluded_stride, None, offset)
        select_row(scores, scores_stride, length, count, to, offset, limit, LARGEST, BLOCK, SINGLE, False, masks)
    else:
        select_row(scores, scores_stride, length, count, to, offset, limit, LARGEST, BLOCK, SINGLE)
    if index == 0:
        tl.store(cu_out, 0)
    if index < batch:
        tl.store(cu_out + index + 1, tl.minimum(before + count, total_out))
    if index + 1 >= batch:
        fill(out, before + count, total_out, BLOCK)
        if before + count > total_out:
            flags |= TRUNCATED
        if status is not None:  # noqa: SIM102 (decided at compile time)
            if flags != 0:
                tl.atomic_or(status, flags)


@triton.jit(do_not_specialize=["scores_stride", "cu_stride", "k_stride", "batch", "tokens", "total_out",
                               "protected_stride", "parts"])
def rank_varlen_kernel(scores, scores_stride: tl.int64, cu_seqlens, cu_stride: tl.int64, k, k_stride: tl.int64, free,
                       batch: tl.int64, tokens: tl.int64, total_out: tl.int64, protected, protected_stride: tl.int64,
                       chosen, out, parts: tl.int64, LARGEST: tl.constexpr, TILE: tl.constexpr,
                       SEGMENTS: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) // parts
    part = tl.program_id(0).to(tl.int64) % parts
    begin, _length, count, before, _flags = segment_at(cu_seqlens, cu_stride, k, k_stride, free, batch, tokens, index,
                                                       SEGMENTS)
    scores += begin * scores_stride
    zero = tl.zeros((), tl.int64)
    if protected is not None:
        masks = (protected, begin * protected_stride, protected_stride, None, zero, zero, None, zero)
        rank_row(scores, scores_stride, chosen + begin, count, out + before, begin, total_out - before, part, parts,
                 LARGEST, TILE, masks)
    else:
        rank_row(scores, scores_stride, chosen + begin, count, out + before, begin, total_out - before, part, parts,
                 LARGEST, TILE)


def select_topk_varlen_out(scores: Tensor, cu_seqlens: Tensor, k: Tensor, total_out: int, *, largest: bool = True,
                           protected: Tensor | None = None, excluded: Tensor | None = None, order: str = "index",
                           out_indices: Tensor, out_cu_seqlens: Tensor, status: Tensor | None = None) -> None:
    batch, tokens, device = k.shape[0], scores.shape[0], scores.device
    config = lookup.config("select_topk_varlen", _triton.device_name(device), scores.dtype, n=tokens)
    block = config["select_block"]
    options = {"num_warps": config["num_warps"], "num_stages": config["num_stages"], "SEGMENTS": SEGMENT_BLOCK}
    protected_bytes, _, protected_stride = mask_arguments(protected)
    excluded_bytes, _, excluded_stride = mask_arguments(excluded)
    metadata = (cu_seqlens, cu_seqlens.stride(0), k, k.stride(0))
    free = None
    if excluded is not None and batch > 0:
        free = torch.empty(batch, dtype=torch.int64, device=device)
        _triton.launch(count_kernel, batch, device, *metadata, batch, tokens, excluded_bytes, excluded_stride, free,
                       BLOCK=block, **options)
    chosen = torch.empty(tokens, dtype=torch.int64, device=device) if order == "score" else None
    _triton.launch(select_varlen_kernel, max(1, batch), device, scores, scores.stride(0), *metadata, free, batch,
                   tokens, total_out, protected_bytes, protected_stride, excluded_bytes, excluded_stride, chosen,
                   out_indices, out_cu_seqlens, status, LARGEST=largest, BLOCK=block, SINGLE=tokens <= block, **options)
    if chosen is not None and batch > 0 and total_out > 0:
        parts = rank_parts(tokens)
        _triton.launch(rank_varlen_kernel, batch * parts, device, scores, scores.stride(0), *metadata, free, batch,
                       tokens, total_out, protected_bytes, protected_stride, chosen, out_indices, parts,
                       LARGEST=largest, TILE=RANK_TILE, SEGMENTS=SEGMENT_BLOCK, num_warps=4, num_stages=1)
