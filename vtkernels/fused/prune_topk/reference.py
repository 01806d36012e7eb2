"""Plain torch, any device: score, select, gather, one after the other, without a host sync."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._library import STATUS_BAD_SPAN
from ...compact.gather_kv.reference import take_kv
from ...compact.gather_tokens.reference import take_rows
from ...score.prototype_scores.reference import prototype_scores
from ...select.select_topk.reference import select_topk


def prune_topk(hidden: Tensor, prototypes: Tensor, k: int, kv: Sequence[Tensor] | None = None, *,
               keep_similar: bool = False, span_start: int = 0, span_len: int = -1,
               span_starts: Tensor | None = None, prototype_rnorm: Tensor | None = None, kv_layout: str = "HND",
               status: Tensor | None = None) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    batch, n, _ = hidden.shape
    length = n - span_start if span_len == -1 else span_len
    position = torch.arange(n, device=hidden.device)
    if span_starts is None:
        start = position.new_full((batch, 1), span_start)
    else:
        start = span_starts[:, None].long().clamp(0, n - length)
        if status is not None:
            status.bitwise_or_((start[:, 0] != span_starts).any().to(torch.int32) * STATUS_BAD_SPAN)
    span = start + position[:length]  # [B, L]
    scores, _ = prototype_scores(take_rows(hidden, span, 1), prototypes, prototype_rnorm=prototype_rnorm)
    chosen = start + select_topk(scores, k, largest=keep_similar)  # [B, k]
    kept = (position < start) | (position >= start + length)  # [B, N], text stays
    kept = kept.scatter(1, chosen, True)
    indices = torch.where(kept, position, n).sort(dim=-1).values[:, :n - length + k].contiguous()
    caches = [take_kv(t, indices, kv_layout) for t in kv or ()]
    return take_rows(hidden, indices, 1), caches, indices, scores
