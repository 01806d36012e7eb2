"""Plain torch, any device: the best of every segment, then the best of the rest. Reads the bounds on the host."""

from itertools import pairwise

import torch
from torch import Tensor

from ..._library import STATUS_BAD_SEQLENS
from ..select_topk.reference import EXCLUDED, first_of, ranking, standing
from ..select_topk_varlen.reference import ascending_bounds


def select_quota(scores: Tensor, cu_segments: Tensor, k: int, quota: int, *, largest: bool = True,
                 protected: Tensor | None = None, excluded: Tensor | None = None, order: str = "index",
                 status: Tensor | None = None) -> Tensor:
    n = scores.shape[1]
    given = cu_segments.tolist()
    bounds = ascending_bounds(given, n)
    if status is not None and bounds != given:
        status.bitwise_or_(STATUS_BAD_SEQLENS)
    classes = standing(scores, protected, excluded)
    counts = (classes != EXCLUDED).sum(-1).clamp(max=k)
    ranked = ranking(scores, largest, classes)
    place = torch.empty_like(ranked).scatter_(1, ranked, torch.arange(n, device=scores.device).expand_as(ranked))
    by_quota = torch.zeros_like(classes, dtype=torch.bool)
    for begin, end in pairwise(bounds):
        best = place[:, begin:end].argsort(dim=-1)[:, :quota] + begin
        by_quota.scatter_(1, best, True)
    by_quota &= classes != EXCLUDED
    # The tokens that fill a quota first, in order of their places; then all others. Excluded ones stay last.
    chosen_first = torch.where(by_quota, place, place + n).argsort(dim=-1)
    chosen = torch.zeros_like(by_quota).scatter_(1, chosen_first, torch.arange(n, device=scores.device) <
                                                 counts[:, None])
    return first_of(torch.where(chosen, place, place + n).argsort(dim=-1), counts, k, order)
