"""ToDRE: a diverse subset after the encoder, and none at all once the text has taken up what it needs."""

from dataclasses import dataclass

import torch

from ..select.select_diverse import select_diverse
from ._inputs import Inputs, Result, Stage
from ._method import Info, Method, count_of, keep, require
from ._registry import register


@register(Info("todre", "ToDRE", "arXiv 2505.18757", "selection", "projector", ("hidden",), "exact", "abstract",
               "similarity"))
@dataclass(frozen=True)
class ToDRE(Method):
    """Stage 0 keeps a greedy subset by cosine distance. Each later stage, after a late decoder layer, drops all visual
    tokens of a row whose text gives them less than `threshold` of its attention.

    Args:
        keep: share of the tokens that stage 0 keeps (rounded), or how many.
        objective: "max_sum" (version 2 of the paper) or "max_min" (version 1, k-center).
        layers: decoder layers after which the criterion is tried.
        threshold: share of the attention, mean over text rows and heads.

    Inputs: `decoder[-1]` from stage 1 on, its query the rows of text. The result of such a stage has the counts 0 or N,
    on the device. Ties go to the lower position; attention of NaN drops nothing.

    Source: Li et al., arXiv 2505.18757; the two stages as in the abstract; the first pick (of `select_diverse`), the
    layers and the threshold are ours.
    """

    takes = ("decoder",)

    keep: float | int = 0.1
    objective: str = "max_sum"
    layers: tuple[int, ...] = (24,)
    threshold: float = 0.1

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(0, self.keep), *(Stage(layer, 0) for layer in self.layers))

    def run_stage(self, inputs: Inputs, stage: Stage) -> Result:
        n = inputs.tokens.shape[1]
        if stage.layer == 0:
            count = count_of("todre", stage.keep, n, n)
            return keep(inputs, select_diverse(inputs.tokens, count, objective=self.objective)[1])
        require("todre", inputs, "decoder")
        scores = inputs.decoder[-1].scores(n)
        drop = scores.sum(1) < self.threshold
        indices = torch.arange(n, device=drop.device).masked_fill(drop[:, None], -1)
        return keep(inputs, indices, torch.where(drop, 0, n).to(torch.int32), scores)
