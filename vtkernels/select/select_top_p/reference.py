"""Plain torch, any device: integer weights, so that every backend adds up to the same sum."""

import math

import torch
from torch import Tensor

from ..allocate_budget.reference import integer_weights
from ..select_threshold.reference import at_least, ragged
from ..select_topk.reference import selection_keys


def fixed_point(p: float) -> int:
    """p in units of 2**-31, rounded down, at least one unit."""
    return max(1, math.floor(p * 2**31))


def select_top_p(scores: Tensor, p: float, *, min_keep: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    weights = integer_weights(scores)
    total = weights.sum(-1, keepdim=True)
    part = fixed_point(p)
    # ceil(total * part / 2**31) without leaving 64 bits
    need = (total >> 31) * part + (((total & (2**31 - 1)) * part + (2**31 - 1)) >> 31)
    best_first = selection_keys(scores, True).argsort(dim=-1, descending=True)
    before = weights.gather(1, best_first)
    before = before.cumsum(-1) - before
    chosen = torch.zeros_like(best_first, dtype=torch.bool).scatter_(1, best_first, before < need)
    return ragged(at_least(chosen, best_first, min_keep))
