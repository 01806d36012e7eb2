"""Plain torch, any device: one similarity matrix of sources and targets."""

import torch
from torch import Tensor

from ...score.prototype_scores.reference import prototype_scores
from ..select_topk.reference import selection_keys


def split(n: int, stride: int, protected: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions of the sources and of the targets."""
    position = torch.arange(protected, n, device=device)
    target = position % stride == stride - 1
    return position[~target], position[target]


def match_bipartite(tokens: Tensor, r: int, *, stride: int = 2, protected: int = 0,
                    source_bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, n, _ = tokens.shape
    device = tokens.device
    if r == 0 or batch == 0:
        none = torch.empty(batch, r, dtype=torch.int64, device=device)
        kept = torch.arange(n, device=device)[:n - r].repeat(batch, 1)
        return none, none.clone(), none.float(), kept
    sources, targets = split(n, stride, protected, device)
    rows = [prototype_scores(row[sources], row[targets]) for row in tokens]
    scores = torch.stack([score for score, _ in rows])
    best = targets[torch.stack([argmax for _, argmax in rows])]
    if source_bias is not None:
        scores = scores + source_bias[:, sources] + 0.0
    picked = selection_keys(scores, True).topk(r, dim=-1).indices.sort(dim=-1).values
    removed = torch.zeros(batch, n, dtype=torch.bool, device=device).scatter(1, sources[picked], True)
    kept = torch.where(removed, n, torch.arange(n, device=device)).sort(dim=-1).values[:, :n - r]
    return sources[picked], best.gather(1, picked), scores.gather(1, picked), kept.contiguous()
