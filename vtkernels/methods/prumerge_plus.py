"""LLaVA-PruMerge+: PruMerge with tokens sampled evenly over the image beside the outliers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ._method import Info
from ._registry import register
from .prumerge import PruMerge


@register(Info("prumerge_plus", "LLaVA-PruMerge+", "ICCV 2025, arXiv 2403.15388", "merging", "projector",
               ("hidden", "vision"), "ragged", "code", "attention"))
@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """PruMerge that keeps more: with r outliers among N tokens also every `floor(floor(N / r) / 3)`-th token, from the
    first on.

    Args:
        neighbours: tokens that each kept one takes up, at most N - 1.
        fence: factor of the interquartile range, at least 0.
        quirk_end: never sample the last token, as in the official code (which matters only where a step hits it).

    Inputs, fields of the result, ties and NaN as for `prumerge`, but up to N + 1 tokens. Without an outlier nothing is
    sampled; the official code divides by zero there.

    Source: Shang et al., "LLaVA-PruMerge", ICCV 2025, arXiv 2403.15388; details as in the official code.
    """

    quirk_end: bool = False

    def most(self, n: int) -> int:
        return n

    def chosen(self, outlier: Tensor, count: Tensor) -> Tensor:
        n = outlier.shape[1]
        step = (n // count.clamp(min=1) // 3).clamp(min=1)
        place = torch.arange(n, device=outlier.device)
        sampled = (place % step == 0) & (count > 0) & (place < n - self.quirk_end)
        return torch.maximum(outlier, sampled.float())
