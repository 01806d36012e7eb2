"""Plain torch, any device: one sequence after the other. Reads the metadata on the host."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._library import STATUS_BAD_SEQLENS, STATUS_BAD_SPAN, STATUS_TRUNCATED
from ...compact.gather_kv.reference import take_kv
from ...compact.gather_tokens.reference import take_rows
from ...score.prototype_scores.reference import prototype_scores
from ...select.select_topk.reference import select_topk


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def prune_topk_varlen(hidden: Tensor, prototypes: Tensor, cu_seqlens: Tensor, k: Tensor, total_out: int,
                      kv: Sequence[Tensor] | None = None, *, keep_similar: bool = False,
                      span_starts: Tensor | None = None, span_lens: Tensor | None = None,
                      prototype_rnorm: Tensor | None = None, kv_layout: str = "HND",
                      status: Tensor | None = None) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    total = hidden.shape[0]
    flags = 0
    given = cu_seqlens.tolist()
    bounds = [0] * len(given)
    for i, value in enumerate(given):
        bounds[i] = max(_clamp(value, 0, total), bounds[i - 1] if i else 0)
    if bounds != given or bounds[0] != 0:
        flags |= STATUS_BAD_SEQLENS

    scores = hidden.new_full((total,), torch.nan, dtype=torch.float32)
    kept = []
    out_bounds = [0]
    for i, wanted in enumerate(k.tolist()):
        begin, end = bounds[i], bounds[i + 1]
        asked_start = 0 if span_starts is None else int(span_starts[i])
        asked_len = end - begin if span_lens is None else int(span_lens[i])
        start = _clamp(asked_start, 0, end - begin)
        length = _clamp(asked_len, 0, end - begin - start)
        count = _clamp(wanted, 0, length)
        if (start, length, count) != (asked_start, asked_len, wanted):
            flags |= STATUS_BAD_SPAN
        first = begin + start
        span_scores, _ = prototype_scores(hidden[first:first + length], prototypes, prototype_rnorm=prototype_rnorm)
        scores[first:first + length] = span_scores
        chosen = first + select_topk(span_scores[None], count, largest=keep_similar)[0]
        kept += [torch.arange(begin, first), chosen.cpu(), torch.arange(first + length, end)]
        out_bounds.append(out_bounds[-1] + end - begin - length + count)
    if out_bounds[-1] > total_out:
        flags |= STATUS_TRUNCATED
    if status is not None:
        status.bitwise_or_(flags)

    indices = torch.full((total_out,), -1, dtype=torch.int64)
    found = torch.cat(kept)[:total_out] if kept else indices[:0]
    indices[:len(found)] = found
    indices = indices.to(hidden.device)
    rows = indices[None]
    caches = [take_kv(t[None], rows, kv_layout)[0] for t in kv or ()]
    cu_out = torch.tensor(out_bounds, dtype=torch.int32, device=hidden.device).clamp(max=total_out)
    return take_rows(hidden[None], rows, 1)[0], caches, indices, scores, cu_out
