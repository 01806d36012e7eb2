"""How published video methods count what they keep, composed of `select_topk` and `allocate_budget`."""

import torch
from torch import Tensor

from .allocate_budget import allocate_budget
from .select_topk import select_topk


def evs_count(tokens_per_frame: int, frames: int, pruning_rate: float) -> int:
    """Tokens that EVS keeps of a video: never fewer than those of the first frame.

    Example:
        >>> evs_count(196, 16, 0.75), evs_count(196, 4, 0.9)
        (784, 196)

    Source: Efficient Video Sampling (arXiv 2510.14624), as serving engines size their placeholders.
    """
    return max(tokens_per_frame, int(tokens_per_frame * frames * (1 - pruning_rate)))


def evs_select(dissimilarity: Tensor, tokens_per_frame: int, pruning_rate: float) -> Tensor:
    """Positions that EVS keeps, `[B, evs_count]`: the first frame whole, then what changed most.

    Args:
        dissimilarity: `[B, frames * tokens_per_frame]` float32 to the same place in the previous frame. What the first
            frame holds does not count.
        tokens_per_frame: tokens of a frame.
        pruning_rate: the part to remove, 0 to 1.

    Example:
        >>> changed = torch.tensor([[0.0, 0.0, 0.1, 0.7, 0.2, 0.3]])
        >>> evs_select(changed, 2, 0.3)
        tensor([[0, 1, 3, 5]])
    """
    batch, n = dissimilarity.shape
    first = (torch.arange(n, device=dissimilarity.device) < tokens_per_frame).expand(batch, n)
    count = evs_count(tokens_per_frame, n // tokens_per_frame, pruning_rate)
    return select_topk(dissimilarity, count, protected=first)


def frame_budgets(uniqueness: Tensor, tokens_per_frame: int, total: int, *, temperature: float = 0.01,
                  minimum: int = 0) -> Tensor:
    """Split a total over frames as VidCom2 does, with an exact sum and never more than a frame holds.

    A frame with the share s of `softmax(uniqueness / temperature)` gets `total / F * (1 + s - 1 / F)`.

    Args:
        uniqueness: `[B, F]` float32, one score per frame, higher for frames that differ more.
        tokens_per_frame: tokens of a frame.
        total: tokens to keep of all frames.
        temperature: of the softmax.
        minimum: every frame gets this many first.

    Returns:
        `[B, F]` int32. Its `cumsum` and `select_topk_varlen` then choose within the frames.

    Example:
        >>> frame_budgets(torch.tensor([[0.5, 0.5, 0.9, 0.5]]), 196, 400)
        tensor([[ 75,  75, 175,  75]], dtype=torch.int32)

    Source: VidCom2 (arXiv 2505.14454), where each frame's share is rounded by itself.
    """
    frames = uniqueness.shape[1]
    weights = 1 + (uniqueness / temperature).softmax(-1) - 1 / max(1, frames)
    capacity = torch.full_like(weights, tokens_per_frame, dtype=torch.int32)
    return allocate_budget(weights, total, minimum=minimum, capacity=capacity)
