"""DivPrune: the tokens that are farthest from each other."""

from dataclasses import dataclass

from ..select.select_diverse import select_diverse
from ._inputs import Inputs, Result
from ._method import Info, Method, count_of, keep
from ._registry import register


@register(Info("divprune", "DivPrune", "CVPR 2025, arXiv 2503.02175", "selection", "projector", ("hidden",), "exact",
               "code", "similarity"))
@dataclass(frozen=True)
class DivPrune(Method):
    """Greedy max-min selection by cosine distance: first the token whose nearest other is farthest, then always the one
    farthest from those picked.

    Args:
        keep: share of the tokens that stays (rounded), or how many.

    Inputs: `hidden`, after the projector. A token is picked once; the official code can pick a duplicate again. Ties go
    to the lower position, NaN ranks last.

    Source: Alvar et al., CVPR 2025, arXiv 2503.02175; details as in the official code.
    """

    keep: float | int = 0.098

    def run(self, inputs: Inputs) -> Result:
        n = inputs.tokens.shape[1]
        _, indices = select_diverse(inputs.tokens, count_of("divprune", self.keep, n, n))
        return keep(inputs, indices)
