"""VidCom2: more tokens for frames that differ, and in each the tokens that differ."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..compact.merge_tokens import merge_tokens
from ..score.attention_scores import attention_scores
from ..score.row_statistics import row_statistics
from ..select.counting import frame_budgets
from ..select.select_topk_varlen import select_topk_varlen
from ._inputs import Inputs, Result
from ._method import Info, Method, count_of, keep
from ._registry import register


@register(Info("vidcom2", "VidCom2", "EMNLP 2025, arXiv 2505.14454", "selection", "projector", ("hidden", "grid"),
               "exact", "paper", "similarity"))
@dataclass(frozen=True)
class VidCom2(Method):
    """With x the tokens divided by their norm and c a mean of them, `g(x, c) = sum_a exp(-|x - c|^2 / 2a)`. A token's
    score is `-(g(x, mean of the video) + g(x, mean of its frame))`; a frame's is the mean of the first term, u. Frame
    t keeps `K / F * (1 + softmax(u / temperature)[t] - 1 / F)` of its best tokens, K in all.

    Args:
        keep: share of the video's tokens that stays (rounded), or how many.
        temperature: of the softmax over frames.
        scales: a, of the Gaussians.

    Inputs: `hidden` and `grid`. The shares are made to add up to K exactly by largest remainder, no frame above what
    it holds; the paper rounds each by itself. Ties go to the lower position, NaN ranks last.

    Source: Liu et al., "Video Compression Commander", EMNLP 2025, arXiv 2505.14454; details as in the paper.
    """

    keep: float | int = 0.25
    temperature: float = 0.01
    scales: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0)

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        tokens, frames = inputs.tokens.float(), inputs.grid[0]
        batch, total, _ = tokens.shape
        n = total // frames
        _, norms, _ = row_statistics(tokens)
        weights = torch.where(norms == 0, 0.0, 1 / norms)
        frame = torch.arange(total, device=tokens.device) // n
        sums, _ = merge_tokens(tokens, frame.expand(batch, -1), frames, weights=weights, reduce="sum")
        of_video = self._gaussians(tokens, weights, sums.mean(1) / n)
        of_frame = self._gaussians(tokens.reshape(batch * frames, n, -1), weights.view(-1, n), sums.flatten(0, 1) / n)
        scores = -(of_video + of_frame.view(batch, total))
        count = count_of("vidcom2", self.keep, total, total)
        budgets = frame_budgets(-of_video.view(batch, frames, n).mean(2), n, count, temperature=self.temperature)
        bounds = torch.arange(0, batch * total + 1, n, dtype=torch.int32, device=tokens.device)
        indices, _ = select_topk_varlen(scores.flatten(), bounds, budgets.flatten(), batch * count)
        first = torch.arange(0, batch * total, total, device=tokens.device)[:, None]
        return keep(inputs, indices.view(batch, count) - first, scores=scores)

    def _gaussians(self, tokens: Tensor, weights: Tensor, centres: Tensor) -> Tensor:
        """g of tokens `[S, n, D]`, times weights `[S, n]`, to the centre of their set `[S, D]`."""
        products = attention_scores(centres[:, None, None], tokens[:, None], logits=True, scale=1.0)
        norms = (weights != 0) + centres.square().sum(1, keepdim=True)
        distance = norms - 2 * weights * products
        return sum((distance / (-2 * a)).exp() for a in self.scales)  # type: ignore[return-value]
