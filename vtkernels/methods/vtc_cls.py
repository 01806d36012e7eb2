"""VTC-CLS: the tokens that the CLS token looks at, over many layers of the encoder."""

from dataclasses import dataclass
from typing import Any

import torch

from ._inputs import Inputs, Result
from ._method import Info, Method, count_of, keep_best
from ._registry import register

REDUCE: dict[str, Any] = {"sum": torch.sum, "min": torch.amin, "max": torch.amax}


@register(Info("vtc_cls", "VTC-CLS", "arXiv 2412.05819", "selection", "projector", ("hidden", "vision"), "exact",
               "code", "attention"))
@dataclass(frozen=True)
class VTCCLS(Method):
    """`score[j] = sum over layers of mean over heads of A[CLS, j]`; the best stay.

    Args:
        keep: how many tokens stay, or their share (rounded).
        first_layer: first layer of the sum.
        reduce: over layers: "sum", "min" or "max".

    Inputs: `vision`, all layers of the encoder; the last one does not count, as the tokens come from the last but one.
    `hidden` may be what goes into the projector: the tokens are gathered before it. Ties go to the lower position, NaN
    ranks last.

    Source: arXiv 2412.05819; details as in the official code.
    """

    keep: float | int = 192
    first_layer: int = 0
    reduce: str = "sum"

    def __post_init__(self) -> None:
        if self.reduce not in REDUCE:
            raise ValueError(f"vtc_cls: `reduce` is {self.reduce!r}, allowed: {', '.join(REDUCE)}")

    def run(self, inputs: Inputs) -> Result:
        n, layers = inputs.tokens.shape[1], inputs.vision[self.first_layer:-1]
        if not layers:
            raise ValueError(f"vtc_cls: `inputs.vision` is of {len(inputs.vision)} layers, allowed: at least "
                             f"{self.first_layer + 2} (from `first_layer` to the last but one)")
        scores = REDUCE[self.reduce](torch.stack([layer.scores(n) for layer in layers]), dim=0)
        return keep_best(inputs, scores, count_of("vtc_cls", self.keep, n, n))
