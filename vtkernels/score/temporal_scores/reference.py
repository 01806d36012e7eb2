"""Plain torch, any device: the readable truth."""

import torch
from torch import Tensor

from ..prototype_scores.reference import reciprocal_norms

FIRST = {"cosine": -torch.inf, "l1": torch.inf, "l2": torch.inf}


def temporal_scores(tokens: Tensor, *, metric: str = "cosine", first: float | None = None) -> Tensor:
    scores = tokens.new_full(tokens.shape[:-1], FIRST[metric] if first is None else first, dtype=torch.float32)
    previous, current = tokens[:, :-1].float(), tokens[:, 1:].float()
    if metric == "cosine":
        score = (previous * current).sum(-1) * reciprocal_norms(previous) * reciprocal_norms(current)
    elif metric == "l1":
        score = (current - previous).abs().sum(-1)
    else:
        score = (current - previous).square().sum(-1).sqrt()
    scores[:, 1:] = score + 0.0  # + 0.0 turns -0 into +0
    return scores
