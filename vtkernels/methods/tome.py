"""ToMe: tokens merge into the most similar token of the other half."""

from dataclasses import dataclass

from torch import Tensor

from ..compact.gather_tokens import gather_tokens
from ..compact.merge_tokens import merge_assignment, merge_tokens
from ..select.match_bipartite import match_bipartite
from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


def head_mean(keys: Tensor) -> Tensor:
    """What ToMe compares: `[B, H, N, d]` keys as `[B, N, d]`, the mean over the heads."""
    return keys.mean(1)


def merge_matched(inputs: Inputs, metric: Tensor, r: int, stride: int, protected: int,
                  source_bias: Tensor | None = None) -> Result:
    """Merge the r sources that fit best into their targets, weighted by the sizes of the tokens."""
    sources, targets, _, kept = match_bipartite(metric, r, stride=stride, protected=protected, source_bias=source_bias)
    assignment = merge_assignment(kept, sources, targets)
    hidden, sizes = merge_tokens(inputs.tokens, assignment, kept.shape[1], weights=inputs.sizes)
    positions = None if inputs.positions is None else gather_tokens([inputs.positions], kept)[0]
    return Result(hidden, kept, assignment=assignment, sizes=sizes, positions=positions)


def sources_of(name: str, r: float | int, n: int, stride: int, protected: int) -> int:
    """How many of n tokens merge: r, at most as many as are sources."""
    if r < 0 or (isinstance(r, float) and not r <= 1):
        raise ValueError(f"{name}: `r` is {r}, allowed: a share from 0.0 to 1.0, or a number of tokens from 0")
    first = -(-(protected + 1) // stride) * stride - 1  # the first target at or after `protected`
    targets = len(range(first, n, stride))
    return min(r if isinstance(r, int) else round(r * n), n - protected - targets) if targets else 0


@register(Info("tome", "ToMe", "ICLR 2023, arXiv 2210.09461", "merging", "encoder", ("hidden", "vision"), "merged",
               "code", "similarity"))
@dataclass(frozen=True)
class ToMe(Method):
    """Bipartite soft matching: token i is a target when `i % stride == stride - 1`, else a source. The r sources with
    the largest `max_t cos(k_i, k_t)` merge into that target, `x_t = sum_i s_i x_i / sum_i s_i` with their sizes s. The
    keys k are means over the heads.

    Args:
        r: how many tokens merge, or their share (rounded); no more than there are sources.
        stride: 2 for the two halves of the paper, k for the official code's every k-th token.
        protected: leading tokens that never merge, 1 for a class token, 2 with a distillation token.

    Inputs: the keys of `vision[-1]`, the layer in which the tokens merge; `sizes` of earlier merges. The next layers
    want `log(result.sizes)` as a bias of the attention to each key. Tokens stay in order (the official code puts the
    targets last). Its random split is left out. Ties go to the lower position, NaN ranks last.

    Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461; details as in the official
    code.
    """

    r: float | int = 8
    stride: int = 2
    protected: int = 0

    def run(self, inputs: Inputs) -> Result:
        layer, n = inputs.vision[-1], inputs.tokens.shape[1]
        metric = head_mean(layer.key[:, :, layer.start:layer.start + n])
        r = sources_of("tome", self.r, n, self.stride, self.protected)
        return merge_matched(inputs, metric, r, self.stride, self.protected)
