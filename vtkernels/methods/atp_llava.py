"""ATP-LLaVA: thresholds of each image's own on the attention of its tokens, and a sparse grid that stays."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..score.attention_scores import attention_scores
from ..select.select_threshold import select_threshold
from ._inputs import Attention, Inputs, Result
from ._method import Info, Method, keep
from ._registry import register


class Thresholds(nn.Module):
    """`sigmoid(V (W s + b) + c)` of the two mean scores of an image.

    Args:
        width: of the layer between.

    `forward(means)`: `[B, 2]` gives `[B, 2]`, the thresholds of redundancy and of place.
    """

    def __init__(self, width: int):
        super().__init__()
        self.lift = nn.Linear(2, width)
        self.out = nn.Linear(width, 2)

    def forward(self, means: Tensor) -> Tensor:
        # Products by elements, so that the bits of a row do not depend on the batch.
        hidden = (means[:, None] * self.lift.weight).sum(-1) + self.lift.bias
        logits = (hidden[:, None] * self.out.weight).sum(-1) + self.out.bias
        return 1 / (1 + (-logits).exp())


@register(Info("atp_llava", "ATP-LLaVA", "CVPR 2025, arXiv 2412.00447", "selection", "decoder layer",
               ("hidden", "grid", "decoder"), "ragged", "third-party code", "attention"))
@dataclass(frozen=True)
class ATPLLaVA(Method):
    """A token stays where `S_r > theta_r` or `S_s > theta_s`.

    - `S_r = (S_self + S_cross) / 2`: the mean logit that it gets from the visual rows, before the softmax, and the
      mean attention that it gets from the text rows, each mean over heads.
    - `S_s = 1 - lambda R` of the tokens in every `sqrt(1 / R)`-th row and column of the grid, 0 of the others; with
      several R the largest.
    - `theta_r, theta_s = thresholds(mean S_self, mean S_cross)`, of each image.

    Args:
        thresholds: called with `[B, 2]` float32, gives `[B, 2]`, such as `Thresholds` with trained weights. It runs
            without a gradient.
        sampling: R, the densities of the grid.
        penalty: lambda.
        quirk_mean_over_keys: S_self is the mean logit that a token gives to the visual keys, as in the third-party
            code, not that it gets.

    Inputs: `grid` and `decoder[-1]`, its query all rows of the sequence. Acts at one layer (of 4, 14 and 24, one
    instance each): after it the rows are ragged, with their `positions`. A NaN score counts as no reason to stay.

    Source: Ye et al., "ATP-LLaVA: Adaptive Token Pruning for Large Vision Language Models", CVPR 2025, arXiv
    2412.00447; details as in third-party code.
    """

    thresholds: Callable[[Tensor], Tensor]
    sampling: tuple[float, ...] = (0.25,)
    penalty: float = 3.0
    quirk_mean_over_keys: bool = False

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        n, layer = inputs.tokens.shape[1], inputs.decoder[-1]
        rows, keys = layer.query.shape[2], layer.key.shape[2]
        if rows != keys:
            raise ValueError(f"atp_llava: `inputs.decoder[-1]` has {rows} rows of {keys} keys, allowed: {keys} of both "
                             "(the whole sequence asks)")
        own = self._own(layer, n)
        cross = layer.last_rows(rows - layer.start - n).scores(n)
        with torch.no_grad():
            limits = self.thresholds(torch.stack([own.mean(1), cross.mean(1)], 1)).float()
        scores = (own + cross) / 2
        # A difference of floats is above 0 exactly where the first is larger; fmax passes over NaN.
        margin = (scores - limits[:, :1]).fmax(self._places(inputs.grid, limits.device) - limits[:, 1:])
        indices, counts, _ = select_threshold(margin, 0.0)
        return keep(inputs, indices, counts, scores)

    def _own(self, layer: Attention, n: int) -> Tensor:
        visual = slice(layer.start, layer.start + n)
        query, key = layer.query[:, :, visual], layer.key[:, :, visual]
        if self.quirk_mean_over_keys:
            query, key = key.repeat_interleave(query.shape[1] // key.shape[1], 1), query
        return attention_scores(query, key, scale=layer.scale, logits=True)

    def _places(self, grid: tuple[int, int, int], device: torch.device) -> Tensor:
        """S_s, `[N]`."""
        scores = torch.zeros(grid, device=device)
        for density in self.sampling:
            step = max(1, round(density ** -0.5))
            scores[:, ::step, ::step].clamp_(min=1 - self.penalty * density)
        return scores.flatten()
