"""LLaVolta: means of neighbouring tokens after a layer."""

from dataclasses import dataclass

import torch

from ..compact.pool_span import pool_positions, pool_span
from ._inputs import Inputs, Result, Stage
from ._method import Info, Method
from ._registry import register


@register(Info("llavolta", "LLaVolta", "NeurIPS 2024, arXiv 2406.20092", "merging", "decoder layer", ("hidden",),
               "merged", "code", "transformation"))
@dataclass(frozen=True)
class LLaVolta(Method):
    """Visual Context Compressor: after a layer, each run of `window` visual tokens in raster order becomes its mean.

    Args:
        layer: decoder layers that see all tokens, 0 to pool before the first.
        window: tokens in a run; a last, shorter run is the mean of what it has. 1 pools nothing.

    The published training schedule (heavy, light, then none) is `(layer, window)` of (2, 8), (2, 2), (16, 2), (0, 1);
    its single stages are (2, 8) for heavy and (16, 8) for light. Position ids are the means of theirs without the
    fraction, exact; the official code rounds in float16. `indices` are the first token of each run. A NaN stays in its
    run.

    Source: Chen et al., "Efficient Large Multi-modal Models via Visual Context Compression", NeurIPS 2024, arXiv
    2406.20092; details as in the official code.
    """

    layer: int = 2
    window: int = 8

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer, 1 / self.window),)

    def run_stage(self, inputs: Inputs, stage: Stage) -> Result:
        batch, n = inputs.tokens.shape[:2]
        place = torch.arange(n, device=inputs.tokens.device)
        positions = inputs.positions
        if positions is not None:
            positions = pool_positions(positions.movedim(1, -1), self.window, ceil=True).movedim(-1, 1)
        return Result(pool_span(inputs.tokens, self.window, ceil=True), place[::self.window].expand(batch, -1),
                      assignment=(place // self.window).expand(batch, -1), positions=positions)
