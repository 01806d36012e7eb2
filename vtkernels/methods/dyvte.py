"""DyVTE: a router says after which decoder layer all visual tokens leave."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..compact.merge_tokens import merge_tokens
from ..score.prototype_scores import prototype_scores
from ._inputs import Inputs, Result
from ._method import Info, Method, keep
from ._registry import register


class Router(nn.Module):
    """`W_2 GELU(W_1 f)`.

    Args:
        width: D, of the states; hidden: of the layer between.

    `forward(features)`: `[B, 2 D]` gives `[B, 2]` float32, the votes to stay and to leave. For inference: the result
    has no gradient.
    """

    def __init__(self, width: int, hidden: int = 2048):
        super().__init__()
        self.first = nn.Linear(2 * width, hidden, bias=False)
        self.second = nn.Linear(hidden, 2, bias=False)

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        hidden = nn.functional.gelu(_product(self.first.weight, features))
        return _product(self.second.weight, hidden.to(features.dtype))


def _product(weight: Tensor, x: Tensor) -> Tensor:
    """`x W^T` `[B, H]` float32, bitwise the same for each row in any batch."""
    # The rows of W are tokens, x is the one prototype of each batch entry: [H, B, D] against [B, 1, D].
    products, _ = prototype_scores(weight[:, None].expand(-1, x.shape[0], -1), x[:, None], metric="dot")
    return products.T.contiguous()


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
