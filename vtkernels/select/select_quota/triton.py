"""One program per segment marks its best tokens, then one per row selects the rest beside them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ..._library import STATUS_BAD_SEQLENS
from ...tuning import lookup
from ..select_topk.triton import mask_arguments, select_row, select_rows
from ..select_topk_varlen.triton import maximum

BAD_SEQLENS = tl.constexpr(STATUS_BAD_SEQLENS)
SEGMENT_BLOCK = 128


@triton.jit
def bounds_of(cu_segments, cu_stride, segment, n, SEGMENTS: tl.constexpr):
    """Begin and end of a segment, each bound clamped and at least as large as those before it."""
    begin = tl.zeros((), tl.int64)
    for start in range(0, segment + 1, SEGMENTS):
        bound = start + tl.arange(0, SEGMENTS).to(tl.int64)
        given = tl.load(cu_segments + bound * cu_stride, mask=bound <= segment, other=0).to(tl.int64)
        begin = tl.maximum(begin, tl.max(tl.minimum(given, n), 0))
    end = tl.load(cu_segments + (segment + 1) * cu_stride).to(tl.int64)
    return begin, tl.maximum(begin, tl.minimum(end, n))


@triton.jit
def bounds_status(cu_segments, cu_stride, bounds, n, SEGMENTS: tl.constexpr):
    """BAD_SEQLENS where a bound had to be clamped."""
    bad = tl.zeros((), tl.int32)
    last = tl.zeros((), tl.int64)
    for start in range(0, bounds, SEGMENTS):
        bound = start + tl.arange(0, SEGMENTS).to(tl.int64)
        given = tl.load(cu_segments + bound * cu_stride, mask=bound < bounds, other=0).to(tl.int64)
        clamped = tl.associative_scan(tl.minimum(tl.maximum(given, 0), n), 0, maximum)
        clamped = tl.maximum(clamped, last)
        last = tl.max(clamped, 0)
        bad += tl.sum(((clamped != given) & (bound < bounds)).to(tl.int32), 0)
    return tl.where(bad > 0, BAD_SEQLENS, 0)


@triton.jit(do_not_specialize=["scores_batch", "scores_stride", "n", "rows", "segments", "quota", "cu_stride",
                               "protected_batch", "protected_stride", "excluded_batch", "excluded_stride"])
def mark_kernel(scores, scores_batch: tl.int64, scores_stride: tl.int64, n: tl.int64, rows: tl.int64,
                segments: tl.int64, quota: tl.int64, cu_segments, cu_stride: tl.int64, protected,
                protected_batch: tl.int64, protected_stride: tl.int64, excluded, excluded_batch: tl.int64,
                excluded_stride: tl.int64, taken, status, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
                SINGLE: tl.constexpr, SEGMENTS: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    if status is not None:  # noqa: SIM102 (decided at compile time)
        if program == 0:
            flags = bounds_status(cu_segments, cu_stride, segments + 1, n, SEGMENTS)
            if flags != 0:
                tl.atomic_or(status, flags)
    if taken is not None:  # noqa: SIM102 (decided at compile time)
        if program < rows * segments:
            row = program // segments
            begin, end = bounds_of(cu_segments, cu_stride, program % segments, n, SEGMENTS)
            length = end - begin
            zero = tl.zeros((), tl.int64)
            wanted = tl.minimum(quota, length)
            first = scores + row * scores_batch + begin * scores_stride
            marks = taken + row * n + begin
            if (protected is not None) | (excluded is not None):
                masks = (protected, row * protected_batch + begin * protected_stride, protected_stride, excluded,
                         row * excluded_batch + begin * excluded_stride, excluded_stride, None, zero)
                select_row(first, scores_stride, length, wanted, marks, zero, wanted, LARGEST, BLOCK, SINGLE, True,
                           masks)
            else:
                select_row(first, scores_stride, length, wanted, marks, zero, wanted, LARGEST, BLOCK, SINGLE, True)


def select_quota_out(scores: Tensor, cu_segments: Tensor, k: int, quota: int, *, largest: bool = True,
                     protected: Tensor | None = None, excluded: Tensor | None = None, order: str = "index",
                     out: Tensor, status: Tensor | None = None) -> None:
    batch, n = scores.shape
    segments = cu_segments.shape[0] - 1
    config = lookup.config("select_quota", _triton.device_name(scores.device), scores.dtype, n=n)
    block = config["select_block"]
    taken = None
    if quota > 0 and batch > 0 and segments > 0:
        taken = torch.zeros(batch, n, dtype=torch.uint8, device=scores.device)
    if taken is not None or status is not None:
        programs = 1 if taken is None else batch * segments
        _triton.launch(mark_kernel, programs, scores.device, scores, *scores.stride(), n, batch, segments, quota,
                       cu_segments, cu_segments.stride(0), *mask_arguments(protected), *mask_arguments(excluded), taken,
                       status, LARGEST=largest, BLOCK=block, SINGLE=n <= block, SEGMENTS=SEGMENT_BLOCK,
                       num_warps=config["num_warps"], num_stages=config["num_stages"])
    select_rows(scores, k, largest, None, protected, excluded, taken, order, out, config)
