"""IA-RED2: before each group of encoder layers, an interpreter drops uninformative tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..score.attention_scores import attention_scores
from ..select.select_threshold import select_threshold
from ._inputs import Inputs, Result
from ._method import Info, Method, keep
from ._registry import register


class Interpreter(nn.Module):
    """The mean over heads of `sigmoid(<W_q x, W_k p>)`, with p a learned policy token.

    Args:
        width: of the tokens; heads: a divisor of the width.

    `forward(tokens)`: `[B, N, D]` gives `[B, N]` float32. For inference: the result has no gradient. As
    `<W_q x, W_k p> = <x, W_q^T W_k p>` the tokens are read once and not projected.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.policy = nn.Parameter(torch.randn(width))
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        key = self.key(self.policy).unflatten(0, (self.heads, 1, -1))
        probes = (key @ self.query.weight.unflatten(0, (self.heads, -1))).to(tokens.dtype)  # [H, 1, D]
        logits = attention_scores(probes.expand(tokens.shape[0], -1, -1, -1), tokens[:, None], scale=1.0, logits=True,
                                  reduce_heads="none")
        return (1 / (1 + (-logits).exp())).mean(1)


@register(Info("ia_red2", "IA-RED2", "NeurIPS 2021, arXiv 2106.12620", "selection", "encoder", ("hidden",), "ragged",
               "abstract", "query"))
@dataclass(frozen=True)
class IARED2(Method):
    """The tokens that an interpreter finds informative: those with a score above the threshold. One instance before
    each of the three groups of layers.

    Args:
        interpreter: called with `hidden` `[B, N, D]`, gives `[B, N]`, such as `Interpreter` with trained weights. It
            runs without a gradient.
        threshold: what a token's score must exceed.
        min_keep: at least this many per row, the best.

    Inputs: `hidden`, the patch tokens without the CLS token, which always stays. A NaN score does not pass.

    Source: Pan et al., "IA-RED2: Interpretability-Aware Redundancy Reduction for Vision Transformers", NeurIPS 2021,
    arXiv 2106.12620; from its abstract: the details are ours.
    """

    interpreter: Callable[[Tensor], Tensor]
    threshold: float = 0.5
    min_keep: int = 0

    def run(self, inputs: Inputs) -> Result:
        with torch.no_grad():
            scores = self.interpreter(inputs.tokens).float()
        indices, counts, _ = select_threshold(scores, self.threshold, min_keep=self.min_keep)
        return keep(inputs, indices, counts, scores)
