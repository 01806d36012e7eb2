"""PyramidDrop: fewer visual tokens after every quarter of the decoder."""

from dataclasses import dataclass

from ._inputs import Inputs, Result, Stage
from ._method import Info, Method, count_of, keep_best
from ._registry import register


@register(Info("pyramiddrop", "PyramidDrop", "CVPR 2025, arXiv 2410.17247", "selection", "decoder layer",
               ("hidden", "decoder"), "exact", "code", "attention"))
@dataclass(frozen=True)
class PyramidDrop(Method):
    """At each stage the attention that each visual token gets from the last row of the instruction, mean over heads;
    the best stay.

    Args:
        layers: decoder layers after which a stage acts.
        keep: what each stage keeps: a share of the original tokens (rounded down), or how many.
        all_rows: the mean over all rows of the query that count, as in training, where they precede the answer.

    Inputs: `decoder[-1]`, the query and key that the next layer makes of these hidden states; only the last row of the
    query is needed. `original` from the second stage on. The official code numbers the positions of what stays anew.
    Ties go to the lower position, NaN ranks last.

    Source: Xing et al., CVPR 2025, arXiv 2410.17247; details as in the official code.
    """

    decoder_layer = "next"

    layers: tuple[int, ...] = (8, 16, 24)
    keep: tuple[float | int, ...] = (0.5, 0.25, 0.125)
    all_rows: bool = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(Stage(layer, keep) for layer, keep in zip(self.layers, self.keep, strict=True))

    def run_stage(self, inputs: Inputs, stage: Stage) -> Result:
        n, attention = inputs.tokens.shape[1], inputs.decoder[-1]
        count = count_of(self.info.name, stage.keep, inputs.original or n, n, int)
        return keep_best(inputs, (attention if self.all_rows else attention.last_rows()).scores(n), count)
