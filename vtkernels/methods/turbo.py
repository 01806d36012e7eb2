"""Turbo: merging that spares the tokens that carry meaning."""

from dataclasses import dataclass

from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register
from .tome import head_mean, merge_matched, sources_of


@register(Info("turbo", "Turbo", "ECCV 2024, arXiv 2407.11717", "merging", "encoder", ("hidden", "vision"), "merged",
               "abstract", "similarity"))
@dataclass(frozen=True)
class Turbo(Method):
    """ToMe with the score `E_i = max_t cos(k_i, k_t) - alpha A_i`: mutual redundancy less semantic value. A is the
    attention that a token gets from the CLS row, or from all rows without a CLS, mean over heads and rows.

    Args:
        r: how many tokens merge, or their share (rounded); no more than there are sources.
        alpha: weight of the semantic value.
        stride: every stride-th token is a target.
        protected: leading tokens that never merge, such as a class token.

    Inputs: `vision[-1]`, its keys for the redundancy and its query for A; `sizes` of earlier merges. To generate
    images, `unmerge_tokens(hidden, result.assignment)` gives every token its row back. Ties go to the lower position,
    NaN ranks last.

    Source: Ju et al., "Turbo: Informativity-Driven Acceleration Plug-In for Vision-Language Large Models", ECCV 2024,
    arXiv 2407.11717; from its abstract and summaries: the difference is theirs, the details (keys, default of alpha)
    are ours.
    """

    r: float | int = 8
    alpha: float = 10.0
    stride: int = 2
    protected: int = 0

    def run(self, inputs: Inputs) -> Result:
        layer, n = inputs.vision[-1], inputs.tokens.shape[1]
        metric = head_mean(layer.key[:, :, layer.start:layer.start + n])
        r = sources_of("turbo", self.r, n, self.stride, self.protected)
        return merge_matched(inputs, metric, r, self.stride, self.protected, -self.alpha * layer.scores(n))
