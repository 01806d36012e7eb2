"""Plain torch, any device: selection by one integer key, so ties, NaN and -0 are defined."""

import torch
from torch import Tensor

PROTECTED, ORDINARY, EXCLUDED = 0, 1, 2


def selection_keys(scores: Tensor, largest: bool) -> Tensor:
    """[.., N] int64 keys of fp32 scores; a larger key is kept first.

    The upper 32 bits order the scores (NaN lowest whatever the direction, -0 equal to +0), the lower 31 hold the
    inverted index, so that equal scores prefer the lower index and no two keys are equal.
    """
    bits = (scores + 0.0).view(torch.int32).to(torch.int64)
    ordered = torch.where(bits >= 0, bits + 2**31, -1 - bits)  # monotone in the score, 0 .. 2**32 - 1
    if not largest:
        ordered = 2**32 - 1 - ordered
    ordered = torch.where(scores.isnan(), 0, ordered)
    index = torch.arange(scores.shape[-1], device=scores.device)
    return (ordered << 31) | (2**31 - 1 - index)


def standing(scores: Tensor, protected: Tensor | None, excluded: Tensor | None) -> Tensor:
    """[.., N] int64: PROTECTED before ORDINARY before EXCLUDED."""
    classes = torch.full(scores.shape, ORDINARY, device=scores.device)
    if protected is not None:
        classes = torch.where(protected, PROTECTED, classes)
    return classes if excluded is None else torch.where(excluded, EXCLUDED, classes)


def ranking(scores: Tensor, largest: bool, classes: Tensor) -> Tensor:
    """[.., N] positions, best first: by class, then by score, then by position."""
    by_score = selection_keys(scores, largest).argsort(dim=-1, descending=True)
    return by_score.gather(-1, classes.gather(-1, by_score).argsort(dim=-1, stable=True))


def first_of(ranked: Tensor, counts: Tensor, k: int, order: str) -> Tensor:
    """[.., k]: the first `counts` of a ranking in the wanted order, then -1."""
    n = ranked.shape[-1]
    chosen = torch.where(torch.arange(k, device=ranked.device) < counts[..., None], ranked[..., :k], n)
    if order == "index":
        chosen = chosen.sort(dim=-1).values
    return torch.where(chosen == n, -1, chosen)


def select_topk(scores: Tensor, k: int, *, largest: bool = True, ks: Tensor | None = None,
                protected: Tensor | None = None, excluded: Tensor | None = None, order: str = "index") -> Tensor:
    classes = standing(scores, protected, excluded)
    counts = (classes != EXCLUDED).sum(-1).clamp(max=k)
    if ks is not None:
        counts = torch.minimum(counts, ks.clamp(min=0))
    return first_of(ranking(scores, largest, classes), counts, k, order)
