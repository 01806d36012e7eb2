"""FoPru: the tokens, or the rows of the image, that the vision encoder looks at."""

from dataclasses import dataclass

import torch

from ..select.select_topk import select_topk
from ._inputs import Inputs, Result
from ._method import Info, Method, count_of, keep, keep_best, require
from ._registry import register


@register(Info("fopru", "FoPru", "arXiv 2411.14164", "selection", "projector", ("hidden", "vision"), "exact",
               "abstract", "attention"))
@dataclass(frozen=True)
class FoPru(Method):
    """The attention that each token gets in the encoder, mean over heads: from the CLS token, or from all rows where
    there is none. "rank" keeps the best tokens, "row" the rows of the grid with the largest sums.

    Args:
        keep: share of the tokens that stays (rounded to whole tokens or rows), or how many tokens (as many whole rows
            as they hold).
        strategy: "rank" or "row".
        layer: which of the layers in `inputs.vision` is looked at: -2, the last but one, where all of them are given.

    Inputs: `vision`, and for rows `grid`. Ties go to the lower position or row, NaN ranks last.

    Source: Jiang et al., "FoPru: Focal Pruning", arXiv 2411.14164; the two strategies as in the abstract, the details
    are ours.
    """

    takes = ("grid",)

    keep: float | int = 0.25
    strategy: str = "rank"
    layer: int = -1

    def __post_init__(self) -> None:
        if self.strategy not in ("rank", "row"):
            raise ValueError(f"fopru: `strategy` is {self.strategy!r}, allowed: rank, row")

    def run(self, inputs: Inputs) -> Result:
        n = inputs.tokens.shape[1]
        scores = inputs.vision[self.layer].scores(n)
        if self.strategy == "rank":
            return keep_best(inputs, scores, count_of("fopru", self.keep, n, n))
        require("fopru", inputs, "grid")
        assert inputs.grid is not None
        columns = inputs.grid[2]
        lines = n // columns
        share = self.keep // columns if isinstance(self.keep, int) else self.keep
        best = select_topk(scores.unflatten(1, (lines, columns)).sum(-1), count_of("fopru", share, lines, lines))
        indices = best[..., None] * columns + torch.arange(columns, device=best.device)
        return keep(inputs, indices.flatten(1), scores=scores)
