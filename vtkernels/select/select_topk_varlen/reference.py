"""Plain torch, any device: one segment after the other. Reads the metadata on the host."""

import torch
from torch import Tensor

from ..._library import STATUS_BAD_SEQLENS, STATUS_BAD_SPAN, STATUS_TRUNCATED
from ..select_topk.reference import select_topk


def ascending_bounds(given: list[int], total: int) -> list[int]:
    """Bounds of segments, each clamped into 0 .. total and to at least the one before it."""
    bounds: list[int] = []
    for value in given:
        bounds.append(max(min(max(value, 0), total), bounds[-1] if bounds else 0))
    return bounds


def select_topk_varlen(scores: Tensor, cu_seqlens: Tensor, k: Tensor, total_out: int, *, largest: bool = True,
                       protected: Tensor | None = None, excluded: Tensor | None = None, order: str = "index",
                       status: Tensor | None = None) -> tuple[Tensor, Tensor]:
    given = cu_seqlens.tolist()
    bounds = ascending_bounds(given, scores.shape[0])
    flags = STATUS_BAD_SEQLENS if bounds != given or bounds[0] != 0 else 0
    kept = []
    out_bounds = [0]
    for i, wanted in enumerate(k.tolist()):
        span = slice(bounds[i], bounds[i + 1])
        length = span.stop - span.start
        count = min(max(wanted, 0), length)
        if count != wanted:
            flags |= STATUS_BAD_SPAN
        masks = {name: None if mask is None else mask[None, span] for name, mask in
                 (("protected", protected), ("excluded", excluded))}
        (chosen,) = select_topk(scores[None, span], count, largest=largest, order=order, **masks)
        kept.append(span.start + chosen[chosen >= 0])
        out_bounds.append(out_bounds[-1] + len(kept[-1]))
    if out_bounds[-1] > total_out:
        flags |= STATUS_TRUNCATED
    if status is not None:
        status.bitwise_or_(flags)
    indices = torch.full((total_out,), -1, device=scores.device)
    found = torch.cat(kept)[:total_out] if kept else indices[:0]
    indices[:len(found)] = found
    return indices, torch.tensor(out_bounds, dtype=torch.int32, device=scores.device).clamp(max=total_out)
