"""EVS: the first frame of a video, and what changed most since the frame before."""

from dataclasses import dataclass

from ..score.temporal_scores import temporal_scores
from ..select.counting import evs_select
from ._inputs import Inputs, Result
from ._method import Info, Method, keep
from ._registry import register


@register(Info("evs", "EVS", "arXiv 2510.14624", "selection", "projector", ("hidden", "grid"), "exact",
               "third-party code", "similarity"))
@dataclass(frozen=True)
class EVS(Method):
    """`1 - cos(x[t, j], x[t-1, j])` of each token to the same place in the previous frame, infinite in the first; the
    largest of the whole video stay: `max(tokens of a frame, int(N * (1 - pruning_rate)))`, an exact count that a
    serving engine knows beforehand.

    Args:
        pruning_rate: the part to remove, 0 to 1.

    Inputs: `hidden` and `grid`. Ties go to the lower position, NaN ranks last, but the first frame is kept whole
    whatever it holds.

    Source: Efficient Video Sampling, arXiv 2510.14624; details as in third-party code, that of a serving engine.
    """

    pruning_rate: float = 0.75

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        if not 0 <= self.pruning_rate <= 1:
            raise ValueError(f"evs: `pruning_rate` is {self.pruning_rate}, allowed: 0.0 to 1.0")
        frames, rows, columns = inputs.grid
        scores = 1 - temporal_scores(inputs.tokens.unflatten(1, (frames, rows * columns))).flatten(1)
        return keep(inputs, evs_select(scores, rows * columns, self.pruning_rate), scores=scores)
