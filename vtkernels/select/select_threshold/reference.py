"""Plain torch, any device: a float comparison, or the best few by the key of `select_topk`."""

import torch
from torch import Tensor

from ..select_topk.reference import selection_keys


def ragged(chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a [B, N] mask: ascending positions padded with -1, their count per row, and where each row would begin."""
    batch, n = chosen.shape
    index = torch.arange(n, device=chosen.device)
    indices = torch.where(chosen, index, n).sort(dim=-1).values
    counts = chosen.sum(-1, dtype=torch.int32)
    cu_seqlens = torch.zeros(batch + 1, dtype=torch.int32, device=chosen.device)
    cu_seqlens[1:] = counts.cumsum(0)
    return torch.where(indices == n, -1, indices), counts, cu_seqlens


def at_least(chosen: Tensor, best_first: Tensor, min_keep: int) -> Tensor:
    """The mask, or that of the `min_keep` best in rows where fewer are chosen."""
    best = torch.zeros_like(chosen).scatter_(1, best_first[:, :min_keep], True)
    return torch.where(chosen.sum(-1, keepdim=True) < min_keep, best, chosen)


def select_threshold(scores: Tensor, threshold: float, *, largest: bool = True, min_keep: int = 0,
                     thresholds: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    limit = torch.tensor([threshold], dtype=torch.float32, device=scores.device) if thresholds is None else thresholds
    chosen = scores > limit[:, None] if largest else scores < limit[:, None]
    best_first = selection_keys(scores, largest).argsort(dim=-1, descending=True)
    return ragged(at_least(chosen, best_first, min_keep))
