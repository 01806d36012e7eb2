"""PEM: each object query takes, per head, the one pixel token that is most like it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attend.argmax_attention import argmax_attention
from ._attend import joined, linear
from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


class Interaction(nn.Module):
    """`W_2 (alpha * normalise(W_1 (p * q)) + p)`: the prototype p of each query, changed by the query q.

    Args:
        width: of both. quirk_query_norm: normalise over the queries and not over the channels, as the official code.

    `forward(prototypes, queries)`: both `[B, Q, C]`; returns `[B, Q, C]`, before the residual.
    """

    def __init__(self, width: int, quirk_query_norm: bool = False):
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, width)
        self.alpha = nn.Parameter(torch.ones(width))
        self.quirk_query_norm = quirk_query_norm

    def forward(self, prototypes: Tensor, queries: Tensor) -> Tensor:
        mixed = linear(prototypes * queries, self.first.weight, self.first.bias)
        mixed = F.normalize(mixed, dim=1 if self.quirk_query_norm else 2)
        return linear(self.alpha * mixed + prototypes, self.last.weight, self.last.bias)


@register(Info("pem", "PEM", "CVPR 2024, arXiv 2402.19422", "attention", "other", ("vision",), "attention", "code",
               "query"))
@dataclass(frozen=True, eq=False)
class PEM(Method):
    """Prototype cross-attention. Keys and queries are divided by their norm over all heads together; each query takes
    in each head the key of the largest product, its prototype; no softmax, no values.

    Args:
        interaction: what makes the output of prototypes and normalised queries, both `[B, Q, H * d]`: `Interaction`
            with the model's weights. None: the prototypes themselves.
        quirk_first_key: a query that may look at no token takes the first one, as in the official code, and not zeros.

    Inputs: `vision[-1]`: `query` `[B, H, Q, d]` are the projected object queries, `key` `[B, H, N, d]` the projected
    tokens of the memory map; `allowed`, the mask that each query predicted, all tokens when absent.
    Result: `hidden` `[B, Q, H * d]`, without the residual. Ties go to the lower position; a NaN is taken only where all
    are.

    Source: Cavagnero et al., "PEM: Prototype-based Efficient MaskFormer for Image Segmentation", CVPR 2024, arXiv
    2402.19422; details as in the official code.
    """

    interaction: nn.Module | None = None
    quirk_first_key: bool = False

    def run(self, inputs: Inputs) -> Result:
        layer = inputs.vision[-1]
        query, key = _normalise(layer.query), _normalise(layer.key)
        prototypes, places = argmax_attention(query, key, allowed=inputs.allowed)
        if self.quirk_first_key:
            prototypes = torch.where(places[..., None] < 0, key[:, :, :1], prototypes)
        hidden = joined(prototypes)
        return Result(hidden if self.interaction is None else self.interaction(hidden, joined(query)))


def _normalise(heads: Tensor) -> Tensor:
    """`[B, H, T, d]`, each token divided by its norm over heads and channels."""
    return heads / joined(heads).norm(dim=2)[:, None, :, None].clamp(min=1e-12)
