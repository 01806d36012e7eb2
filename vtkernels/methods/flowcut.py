"""FlowCut: inside the encoder, fewer tokens every other layer, by how attention and values flow."""

from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor

from ..score.attention_scores import attention_scores
from ..score.row_statistics import row_statistics
from ..select.select_topk import select_topk
from ._inputs import Attention, Inputs, Result, Stage
from ._method import Info, Method, count_of, keep
from ._registry import register


@register(Info("flowcut", "FlowCut", "NeurIPS 2025, arXiv 2505.19536", "selection", "encoder", ("hidden", "vision"),
               "ragged", "code", "attention"))
@dataclass(frozen=True)
class FlowCut(Method):
    """Of each layer `score = (c / sum c + m / sum m) * v`, with the attention c of the CLS token, the softmax m of the
    products of its value with theirs (both mean over heads) and the L1 norm v of the value's mean over heads. Without
    a CLS token `score = c * v`, with c the attention of the mean query. S is their moving average over the layers.

    With N tokens present and `left` layers to go, a stage drops `(N - keep) / sqrt(left) * (1 - e^2)` of them (rounded,
    never below `keep`), e being the entropy of c over its largest possible value: the flatter, the fewer. The last
    stage keeps exactly `keep`.

    Args:
        keep: tokens after the last stage, or their share of the original ones (rounded).
        encoder_layers: layers of the encoder, of which the last is not used; stages act after 2, 4, .. of the others.
        momentum: share of the earlier average in S.
        cls_token: the key before the first visual token is the CLS token, and the query is its row. False: the query
            holds every row.

    Inputs: `vision`, the layers since the last stage, with values; `scores`, the S of the stage before, at the tokens
    present: its `scores` at its `indices`; `original` for a share. Counts are on the device, each row with its own
    (the official code takes the largest of a batch); cut to them what goes into the next layer. Ties go to the lower
    position, NaN ranks last; attention of NaN drops nothing before the last stage.

    Source: Tong et al., NeurIPS 2025, arXiv 2505.19536; details as in the official code, where m has no 1 / sqrt(d).
    """

    keep: float | int = 128
    encoder_layers: int = 24
    momentum: float = 0.5
    cls_token: bool = True

    @property
    def stages(self) -> tuple[Stage, ...]:
        last = self.encoder_layers - 2
        return tuple(Stage(layer, self.keep) for layer in range(2 - last % 2, last + 1, 2))

    def run_stage(self, inputs: Inputs, stage: Stage) -> Result:
        n, average = inputs.tokens.shape[1], inputs.scores
        for layer in inputs.vision:
            attended, score = self._flow(layer, n)
            average = score if average is None else self.momentum * average + (1 - self.momentum) * score
        assert average is not None
        target = count_of("flowcut", stage.keep, inputs.original or n, n)
        left = self.encoder_layers - 2 - stage.layer
        if left == 0:
            return keep(inputs, select_topk(average, target), scores=average)
        evenness = row_statistics(attended)[2] / log(max(n, 2))
        dropped = ((n - target) / sqrt(left) * (1 - evenness**2)).nan_to_num(0.0).round().clamp(0, n - target)
        counts = n - dropped.to(torch.int32)
        return keep(inputs, select_topk(average, n, ks=counts), counts, average)

    def _flow(self, layer: Attention, n: int) -> tuple[Tensor, Tensor]:
        """What the tokens get of the attention, and their score."""
        if layer.value is None:
            raise ValueError("flowcut: `inputs.vision` has a layer without `value`, allowed: layers with values")
        values = layer.value[:, :, layer.start:layer.start + n]
        size = row_statistics(values.mean(1))[0]
        if not self.cls_token:
            mean = layer.query.mean(2, keepdim=True)
            attended = attention_scores(mean, layer.key, scale=layer.scale, key_start=layer.start, key_len=n)
            return attended, attended * size
        if layer.start < 1:
            raise ValueError("flowcut: `inputs.vision` has `start` 0, allowed: from 1 (the key before is CLS)")
        attended = layer.scores(n)
        alike = attention_scores(layer.value[:, :, layer.start - 1:layer.start], values, scale=1.0)
        return attended, (_normalised(attended) + _normalised(alike)) * size


def _normalised(weights: Tensor) -> Tensor:
    return weights / row_statistics(weights)[0][:, None]
