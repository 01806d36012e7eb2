"""VisionZip: the tokens that the CLS token looks at, and a few that stand for all others."""

from dataclasses import dataclass

import torch

from ..compact.gather_tokens import gather_tokens
from ..compact.merge_tokens import merge_tokens
from ..score.prototype_scores import prototype_scores
from ..select.select_topk import select_topk
from ._inputs import Inputs, Result
from ._join import join, mask_of
from ._method import Info, Method, count_of
from ._registry import register


@register(Info("visionzip", "VisionZip", "CVPR 2025, arXiv 2412.04467", "selection", "encoder", ("hidden", "vision"),
               "merged", "code", "attention"))
@dataclass(frozen=True)
class VisionZip(Method):
    """Dominant tokens have the largest `sum_h A[h, CLS, j]`. Of the R others every floor(R / contextual)-th is a
    target; the rest go to the target with the largest cosine of keys (averaged over heads), and a contextual token is
    its target plus the mean of what went there.

    Args:
        dominant: how many tokens are kept as they are, or their share (rounded).
        contextual: how many targets, or their share (rounded).
        cls_token: token 0 of `hidden` and of the keys is the CLS token, which is one of the dominant ones whatever its
            score, as published.
        appended: the contextual tokens follow the dominant ones, as published; `indices` is then None, as their places
            do not ascend. Otherwise they stand where their targets stood.
        layer: which of the layers in `inputs.vision` is looked at: -2, the last but one, where all of them are given.

    Inputs: `vision`, the CLS row, or all rows where there is none. Text plays no part. Ties go to the lower position,
    NaN ranks last.

    Source: Yang et al., CVPR 2025, arXiv 2412.04467; details as in the official code.
    """

    dominant: float | int = 191
    contextual: float | int = 30
    cls_token: bool = False
    appended: bool = False
    layer: int = -1

    def run(self, inputs: Inputs) -> Result:
        tokens, attention = inputs.tokens, inputs.vision[self.layer]
        batch, n = tokens.shape[:2]
        dominant = count_of("visionzip", self.dominant, n, n)
        contextual = count_of("visionzip", self.contextual, n, n - dominant)
        scores = attention.scores(n, reduce_heads="sum")
        first = (torch.arange(n, device=scores.device) < self.cls_token).expand(batch, n)
        kept = select_topk(scores, dominant, protected=first)
        others = select_topk(scores, n - dominant, excluded=mask_of(kept, n))

        keys = attention.key[:, :, attention.start:attention.start + n].mean(1)
        rest, metric = gather_tokens([tokens, keys], others)
        targets = torch.arange(contextual, device=kept.device) * (others.shape[1] // max(contextual, 1))
        if contextual == 0:
            groups, merged = torch.full_like(others, -1), rest[:, targets]
        else:
            # One set of prototypes per image: [R, B, d] against [B, contextual, d].
            nearest = prototype_scores(metric.transpose(0, 1), metric[:, targets])[1].T.contiguous()
            means, _ = merge_tokens(rest, nearest.index_fill(1, targets, -1), contextual)
            merged = rest[:, targets] + means
            groups = nearest.index_copy(1, targets, torch.arange(contextual, device=kept.device).expand(batch, -1))
        return join(inputs, kept, merged, others[:, targets], others, groups, scores=scores, appended=self.appended)
