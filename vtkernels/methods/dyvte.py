"""DyVTE: a router says after which decoder layer all visual tokens leave."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..compact.merge_tokens import merge_tokens
from ._inputs import Inputs, Result
from ._linear import Linear
from ._method import Info, Method, keep
from ._registry import register


class Router(nn.Module):
    """`W_2 GELU(W_1 f)`.

    Args:
        width: D, of the states; hidden: of the layer between.

    `forward(features)`: `[B, 2 D]` gives `[B, 2]`, the votes to stay and to leave. A row's votes do not depend on the
    batch.
    """

    def __init__(self, width: int, hidden: int = 2048):
        super().__init__()
        self.first = Linear(2 * width, hidden, bias=False)
        self.second = Linear(hidden, 2, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.second(nn.functional.gelu(self.first(features[:, None])))[:, 0]


@register(Info("dyvte", "DyVTE", "arXiv 2411.19628", "selection", "decoder layer", ("hidden", "text"), "ragged", "code",
               "none"))
@dataclass(frozen=True)
class DyVTE(Method):
    """After each decoder layer, until it says so: all visual tokens leave where the router's second output is larger
    than its first, given the mean of the text states but the last, beside the last: `f = [mean(t_1 .. t_T-1), t_T]`.

    Args:
        router: of this layer, called with f `[B, 2 D]` in the dtype of `text`, gives `[B, 2]`, such as `Router` with
            trained weights. It runs without a gradient.

    Inputs: `text`, the states of the tokens after the image, the last of the prompt last. Result: `counts` of 0 or N,
    on the device. A NaN vote keeps the tokens; positions keep their ids.

    Source: Wu et al., "Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the Empirical
    Findings", arXiv 2411.19628; details as in the official code.
    """

    router: Callable[[Tensor], Tensor]

    def run(self, inputs: Inputs) -> Result:
        tokens, text = inputs.tokens, inputs.text
        assert text is not None
        batch, n, _ = tokens.shape
        last = (torch.arange(text.shape[1], device=text.device) == text.shape[1] - 1).long()
        mean_and_last, _ = merge_tokens(text, last.expand(batch, -1), 2)
        with torch.no_grad():
            votes = self.router(mean_and_last.flatten(1))
        leave = votes[:, 0] < votes[:, 1]
        indices = torch.arange(n, device=tokens.device).masked_fill(leave[:, None], -1)
        return keep(inputs, indices, torch.where(leave, 0, n).int())
