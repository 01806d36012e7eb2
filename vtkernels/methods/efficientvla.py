"""EfficientVLA: key tokens of the task, then some more of the task and some unlike them; and the layers that matter."""

from dataclasses import dataclass

import torch

from ..compact.gather_tokens import gather_tokens
from ..score.prototype_scores import prototype_scores
from ..score.temporal_scores import temporal_scores
from ..select.select_topk import select_topk
from ._inputs import Inputs, Result
from ._method import Info, Method, count_of, keep
from ._registry import register


@register(Info("efficientvla", "EfficientVLA", "NeurIPS 2025, arXiv 2506.10100", "selection", "decoder layer",
               ("hidden", "decoder"), "exact", "abstract", "attention"))
@dataclass(frozen=True)
class EfficientVLA(Method):
    """The attention that each visual token gets from the text rows, mean over rows and heads, is its relevance. The
    `key` most relevant tokens stay; of what is left of the count, the share `task` goes to the next most relevant,
    the rest to the tokens with the smallest `max cos` to the key tokens.

    Args:
        keep: share of the tokens that stays (rounded), or how many.
        key: how many key tokens, at least 1; all that stay where that is fewer.
        task: share of the others chosen by relevance (rounded).

    Inputs: `decoder[-1]` of an early layer, its query the text rows. Ties go to the lower position, NaN ranks last.

    Source: Yang et al., "EfficientVLA: Training-Free Acceleration and Compression for Vision-Language-Action Models",
    NeurIPS 2025, arXiv 2506.10100; from its abstract: the details are ours.
    """

    keep: float | int = 56
    key: int = 4
    task: float = 0.5

    def run(self, inputs: Inputs) -> Result:
        tokens = inputs.tokens
        n = tokens.shape[1]
        if self.key < 1 or not 0 <= self.task <= 1:
            raise ValueError(f"efficientvla: `key`, `task` is {self.key}, {self.task}, allowed: 1 or more, 0.0 to 1.0")
        relevance = inputs.decoder[-1].scores(n)
        count = count_of("efficientvla", self.keep, n, n)
        if count == 0:
            return keep(inputs, select_topk(relevance, 0), scores=relevance)
        key = min(self.key, count)
        relevant = select_topk(relevance, key + round(self.task * (count - key)), order="score")
        (keys,) = gather_tokens([tokens], relevant[:, :key])
        # The key tokens of each row are its prototypes: [N, B, D] against [B, key, D].
        likeness, _ = prototype_scores(tokens.transpose(0, 1), keys)
        chosen = torch.zeros_like(relevance, dtype=torch.bool).scatter(1, relevant, True)
        return keep(inputs, select_topk(likeness.T, count, largest=False, protected=chosen), scores=relevance)


@register(Info("efficientvla_layers", "EfficientVLA (layers)", "NeurIPS 2025, arXiv 2506.10100", "selection", "other",
               ("hidden", "grid"), "other", "abstract", "none"))
@dataclass(frozen=True)
class EfficientVLALayers(Method):
    """The decoder layers that change their tokens most: importance is `1 - mean cos(input, output)` over the tokens.

    Args:
        keep: how many layers stay, or their share (rounded).

    Inputs: `hidden` `[B, (L + 1) n, D]`: the states of n tokens before the first layer and after each of the L layers;
    `grid` is (L + 1, 1, n). Result: `indices` `[B, K]`, the layers that stay, 0 to L - 1, and `scores` `[B, L]`, the
    importance by each row of the batch; for one choice of layers take the mean of these over the calibration data.
    Ties go to the earlier layer, NaN ranks last.

    Source: Yang et al., NeurIPS 2025, arXiv 2506.10100; from its abstract: the details are ours.
    """

    keep: float | int = 22

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        layers = inputs.grid[0] - 1
        states = inputs.tokens.unflatten(1, (layers + 1, -1))
        importance = 1 - temporal_scores(states)[:, 1:].mean(2)
        count = count_of("efficientvla_layers", self.keep, layers, layers)
        return Result(indices=select_topk(importance, count), scores=importance)
