"""CoViPAL: a small trained scorer sees image and text, and the best tokens stay."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._inputs import Inputs, Result, Stage
from ._method import Info, Method, count_of, keep_best
from ._registry import register


class Scorer(nn.Module):
    """Two layers over each visual token beside the mean of the text: `w GELU(W_v x + W_t mean(text) + b) + c`.

    Args:
        width: of the tokens; hidden: of the layer between.

    `forward(tokens, text)`: `[B, N, D]` and `[B, T, D]` give `[B, N]`. The paper's abstract does not give its
    architecture: this one is ours, to be trained on the attention that the tokens get in a deeper layer.
    """

    def __init__(self, width: int, hidden: int = 256):
        super().__init__()
        self.visual = nn.Linear(width, hidden)
        self.textual = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, 1)

    def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
        # Products of single vectors by elements, so that the bits of a row do not depend on the batch.
        context = (text.mean(1)[:, None] * self.textual.weight).sum(-1)
        hidden = nn.functional.gelu(self.visual(tokens) + context[:, None])
        return (hidden * self.out.weight[0]).sum(-1) + self.out.bias


@register(Info("covipal", "CoViPAL", "EMNLP 2025 Findings, arXiv 2508.17243", "selection", "decoder layer",
               ("hidden", "text"), "exact", "abstract", "query"))
@dataclass(frozen=True)
class CoViPAL(Method):
    """The tokens that a trained scorer finds best, given the text. One instance for each layer with a scorer.

    Args:
        scorer: called with `hidden` `[B, N, D]` and `text` `[B, T, D]`, gives `[B, N]`, the best tokens highest, such
            as `Scorer` with trained weights. It runs without a gradient; a row's bits depend on the batch no more than
            its layers' do.
        keep: share of the tokens that stays (rounded), or how many.
        layer: decoder layers before it.

    Inputs: `hidden` and `text` before the layer; `original` where layers before it dropped some. Ties go to the lower
    position, NaN ranks last.

    Source: Tang et al., "CoViPAL: Layer-wise Contextualized Visual Token Pruning for Large Vision-Language Models",
    EMNLP 2025 Findings, arXiv 2508.17243; from its abstract: the details are ours.
    """

    scorer: Callable[[Tensor, Tensor], Tensor]
    keep: float | int = 0.25
    layer: int = 0

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer, self.keep),)

    def run_stage(self, inputs: Inputs, stage: Stage) -> Result:
        assert inputs.text is not None
        n = inputs.tokens.shape[1]
        with torch.no_grad():
            scores = self.scorer(inputs.tokens, inputs.text).float()
        return keep_best(inputs, scores, count_of("covipal", stage.keep, inputs.original or n, n))
