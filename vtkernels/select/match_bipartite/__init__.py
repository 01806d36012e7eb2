"""Match tokens for merging, the bipartite way of ToMe."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.match_bipartite.default


def match_bipartite(tokens: Tensor, r: int, *, stride: int = 2, protected: int = 0,
                    source_bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The r tokens most similar to one of the targets, and the target that each of them merges into.

    Token i is a target when `i % stride == stride - 1`, else a source; the first `protected` tokens are neither. With
    stride 2 these are the two sets of ToMe, whose class (and distillation) token is `protected=1` (2).

    Args:
        tokens: `[B, N, D]` float32, float16 or bfloat16, any strides: what is compared, such as the keys of a layer.
        r: how many sources to merge, at most as many as there are; 0 where there is no target. A host number.
        stride: every stride-th token is a target, at least 2 and at most N (2 is always allowed).
        protected: leading tokens that are neither sources nor targets.
        source_bias: `[B, N]` float32, added to the similarity of each source: with minus the importance of the token,
            times a factor, these are the scores of Turbo.

    Returns:
        sources: `[B, r]` int64, ascending: the tokens to merge.
        targets: `[B, r]` int64: the token that each source merges into.
        scores: `[B, r]` float32: `max_t cos(source, t) + source_bias[source]` over the targets t.
        kept: `[B, N - r]` int64, ascending: all tokens but the sources.

    Ties and NaN: cosine, its rounding and the norms that count as zero are those of `prototype_scores`, with the
    targets of the row as prototypes: of equal targets the lowest wins, and a NaN similarity makes the score NaN. The
    best scores are selected as `select_topk` does: equal ones prefer the lower source, NaN ranks last. Nothing of size
    sources x targets is stored but by the reference. A row does not depend on other rows.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes, devices, or a number out of its range.
        RuntimeError: the same from the native backends, or tokens that require a gradient.

    Example:
        >>> tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.1], [3.0, 0.0]]])
        >>> sources, targets, scores, kept = vtkernels.match_bipartite(tokens, 1)
        >>> sources, targets, kept
        (tensor([[0]]), tensor([[3]]), tensor([[1, 2, 3]]))

    Source: ToMe (arXiv 2210.09461), Turbo (arXiv 2407.11717).
    """
    no_grad_needed("match_bipartite", tokens=tokens, source_bias=source_bias)
    return _op(tokens, r, stride=stride, protected=protected, source_bias=source_bias)
