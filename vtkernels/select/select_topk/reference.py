"""Plain torch, any device: selection by one integer key, so ties, NaN and -0 are defined."""

import torch
from torch import Tensor


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


def select_topk(scores: Tensor, k: int, *, largest: bool = True) -> Tensor:
    return selection_keys(scores, largest).topk(k, dim=-1).indices.sort(dim=-1).values
