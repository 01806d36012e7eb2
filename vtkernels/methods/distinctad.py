"""DistinctAD: what a clip shares with its context is discounted, what sets it apart stays."""

from dataclasses import dataclass

from torch import Tensor

from ..attend.em import em_attention
from ..score.row_statistics import row_statistics
from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("distinctad", "DistinctAD", "CVPR 2025, arXiv 2411.18180", "attention", "other", ("hidden",),
               "attention", "abstract", "similarity"))
@dataclass(frozen=True, eq=False)
class DistinctAD(Method):
    """Expectation-maximisation attention over the tokens of consecutive clips: a few unit bases are fitted to all of
    them, the tokens are rebuilt from the bases, and `hidden - discount * rebuilt` goes on. `|hidden - rebuilt|` scores
    how distinct a token is.

    Args:
        bases: `[K, D]`, rows of unit norm to start from: the learned ones of the model.
        iterations: how often they are fitted.
        discount: how much of what the context shares is taken away, 0 to 1.

    Inputs: `hidden`, the tokens of all clips one after the other. Result: `hidden` `[B, N, D]`, `scores`. A NaN reaches
    every token of its own row.

    Source: Fang et al., "DistinctAD: Distinctive Audio Description Generation in Contexts", CVPR 2025, arXiv
    2411.18180; the abstract only, the details are ours on the EM attention of EMANet (ICCV 2019), with its iterations.
    """

    bases: Tensor
    iterations: int = 3
    discount: float = 1.0

    def run(self, inputs: Inputs) -> Result:
        tokens = inputs.tokens
        rebuilt, _ = em_attention(tokens, self.bases, iterations=self.iterations)
        _, distinctness, _ = row_statistics(tokens - rebuilt)
        return Result(tokens - self.discount * rebuilt, scores=distinctness)
