"""VFlowOpt: the tokens that the encoder's global rows look at; what is dropped is merged by cells of the grid."""

from dataclasses import dataclass, replace
from math import ceil, log

import torch
from torch import Tensor

from ..compact.gather_tokens import gather_tokens
from ..compact.recycle import recycle_tokens
from ..score.row_statistics import row_statistics
from ..select.select_topk import select_topk
from ._inputs import Attention, Inputs, Result, Stage
from ._join import join, mask_of
from ._method import Info, Method, count_of, keep_best, require
from ._registry import register


def global_attention(attention: Attention, n: int, threshold: float) -> Tensor:
    """`[B, n]`: the attention that each token gets (mean over heads) from the global rows: those that themselves get
    more than `threshold` times the mean. Where there are none, from all rows (the official code gives NaN)."""
    received = attention.scores(n)
    rows = (received > threshold * received.mean(1, keepdim=True)).float()
    chosen = replace(attention, row_weights=rows).scores(n)
    return torch.where(rows.amax(1, keepdim=True) > 0, chosen, received)


def patch_entropy(pixels: Tensor) -> Tensor:
    """`[B, N]`: bits per pixel of each grey patch, by a histogram of 256 bins."""
    weights = (0.299, 0.587, 0.114) if pixels.shape[2] == 3 else (1 / pixels.shape[2],) * pixels.shape[2]
    grey = sum(weight * channel.flatten(2) for weight, channel in zip(weights, pixels.float().unbind(2), strict=True))
    assert isinstance(grey, Tensor)
    bins = (grey * 255).nan_to_num(0.0).clamp(0, 255).long()
    counts = grey.new_zeros(*grey.shape[:2], 256).scatter_add_(2, bins, torch.ones_like(grey))
    return row_statistics(counts)[2] / log(2)


@register(Info("vflowopt", "VFlowOpt", "ICCV 2025, arXiv 2508.05211", "selection", "projector", ("hidden",), "merged",
               "code", "attention"))
@dataclass(frozen=True)
class VFlowOpt(Method):
    """`importance = c + entropy_weight * softmax(E)`, with c the attention from global rows of the encoder and E the
    entropy of each patch. Stage 0, before the decoder, keeps the most important tokens; of an image it merges the
    others by cells of the grid: the mean of a cell by importance, where its most important member stood. The later
    stages, inside the decoder, drop by the same importance.

    Args:
        keep: share of the tokens that stage 0 keeps, merged ones included, or how many.
        layers: decoder layers after which the later stages act.
        layer_keep: share of the tokens present that each of them keeps (the number dropped is rounded).
        threshold: of global rows, times the mean.
        cell: side of a cell, in tokens; need not be whole.
        recycle: merge what stage 0 drops; False for videos.
        entropy_weight: 0 in the published configurations.

    The defaults keep 25 % over all layers. Published for 10 %: keep 0.1166, layer_keep (1.0, 0.6011), threshold 39.3,
    cell 17.39; for 50 %: 0.723, (0.749, 0.487), 28.7, 11.76.

    Inputs: `scores` for the importance, or else `vision[-1]` (its query every token, `start` 0) and, with an entropy
    weight, `pixels`. Later stages take the `scores` of the stage before at its `indices`. Merging takes `grid`; a cell
    of which nothing is dropped adds no token, so that counts are then on the device. Positions keep their ids. Ties go
    to the lower position, NaN is dropped first.

    Source: Yang et al., ICCV 2025, arXiv 2508.05211; details as in the official code, but for pixels below 0, whose
    bins wrap there.
    """

    takes = ("grid",)

    keep: float | int = 0.265
    layers: tuple[int, ...] = (9, 18)
    layer_keep: tuple[float, ...] = (0.983, 0.877)
    threshold: float = 34.8
    cell: float = 15.58
    recycle: bool = True
    entropy_weight: float = 0.0

    @property
    def stages(self) -> tuple[Stage, ...]:
        later = (Stage(layer, keep) for layer, keep in zip(self.layers, self.layer_keep, strict=True))
        return (Stage(0, self.keep), *later)

    def run_stage(self, inputs: Inputs, stage: Stage) -> Result:
        n, scores = inputs.tokens.shape[1], self.importance(inputs)
        if stage.layer > 0:
            return keep_best(inputs, scores, n - count_of("vflowopt", 1 - stage.keep, n, n))
        count = count_of("vflowopt", stage.keep, n, n)
        return self._recycled(inputs, scores, count) if self.recycle and count < n else keep_best(inputs, scores, count)

    def importance(self, inputs: Inputs) -> Tensor:
        """`[B, N]` float32."""
        if inputs.scores is not None:
            return inputs.scores
        require("vflowopt", inputs, "vision", *(("pixels",) if self.entropy_weight else ()))
        scores = global_attention(inputs.vision[-1], inputs.tokens.shape[1], self.threshold)
        if not self.entropy_weight:
            return scores
        assert inputs.pixels is not None
        return scores + self.entropy_weight * patch_entropy(inputs.pixels).softmax(1)

    def _recycled(self, inputs: Inputs, scores: Tensor, count: int) -> Result:
        require("vflowopt", inputs, "grid")
        assert inputs.grid is not None
        n, (frames, rows, columns) = inputs.tokens.shape[1], inputs.grid
        alone = max(0, count - round(n / self.cell**2))
        kept = select_topk(scores, alone)
        members = select_topk(scores, n - alone, excluded=mask_of(kept, n))

        down, across = (ceil(side / self.cell) for side in (rows, columns))
        place = torch.arange(n, device=scores.device)
        row, column = place // columns % rows, place % columns
        cells = (place // (rows * columns) * down + (row / self.cell).long()) * across + (column / self.cell).long()
        groups = cells[members]
        tokens, importance = gather_tokens([inputs.tokens, scores], members)
        merged, places = recycle_tokens(tokens, groups, frames * down * across, importance)
        places = torch.where(places < 0, -1, members.gather(1, places.clamp_min(0)))
        return join(inputs, kept, merged, places, members, groups, scores=scores, appended=False, ragged=True)
