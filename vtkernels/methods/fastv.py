"""FastV: after an early layer, keep the visual tokens that the last row looks at."""

from dataclasses import dataclass

from ._inputs import Inputs, Result, Stage
from ._method import Info, Method, count_of, keep_best
from ._registry import register


@register(Info("fastv", "FastV", "ECCV 2024, arXiv 2403.06764", "selection", "decoder layer", ("hidden", "decoder"),
               "exact", "code", "attention"))
@dataclass(frozen=True)
class FastV(Method):
    """The attention that each visual token gets from the last prompt row of the layer before, mean over heads; the best
    stay.

    Args:
        keep: share of the tokens that stays (rounded), or how many.
        layer: decoder layers that see all tokens.
        all_rows: the mean over all rows of the query, as the paper words it. The official code takes the last row.

    Inputs: `decoder[-1]` of layer `layer - 1`. Positions keep their ids. Ties go to the lower position, NaN ranks last.

    Source: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024, arXiv 2403.06764; details as in the
    official code.
    """

    keep: float | int = 0.5
    layer: int = 2
    all_rows: bool = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer, self.keep),)

    def run_stage(self, inputs: Inputs, stage: Stage) -> Result:
        n, attention = inputs.tokens.shape[1], inputs.decoder[-1]
        count = count_of("fastv", stage.keep, inputs.original or n, n)
        return keep_best(inputs, (attention if self.all_rows else attention.last_rows()).scores(n), count)
