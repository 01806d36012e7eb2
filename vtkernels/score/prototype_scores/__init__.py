"""Score tokens by their similarity to the nearest prototype."""

import torch
from torch import Tensor

from ... import _library  # noqa: F401  (the schema must exist before the op is bound)
from ..._checks import no_grad_needed

_op = torch.ops.vtkernels.prototype_scores.default


def prototype_scores(tokens: Tensor, prototypes: Tensor, *, metric: str = "cosine",
                     prototype_rnorm: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Similarity of each token to its nearest prototype, and which prototype that is. Never stores tokens x prototypes.

    Args:
        tokens: `[B, N, D]` or `[T, D]`, float32, float16 or bfloat16, any strides.
        prototypes: `[P, D]`, P >= 1, dtype and device of `tokens`, any strides.
        metric: `"cosine"`, or `"dot"` for the plain inner product.
        prototype_rnorm: `[P]` float32 reciprocal L2 norms of the prototypes (0 for a zero prototype), to save their
            computation; only with `"cosine"`.

    Returns:
        scores: `[B, N]` or `[T]`, float32: `max_p <x, p> / (|x| |p|)`, or `max_p <x, p>`.
        argmax: the same shape, int64: the prototype of the maximum of `<x, p> / |p|` (or `<x, p>`); ties go to the
            lowest index.

    Numbers: products and sums in float32, prototypes are not rounded after normalisation. A token or a prototype whose
    squared norm is under the smallest normal float32 counts as zero and has similarity 0; one whose squared norm
    overflows float32 has similarity NaN. A NaN similarity makes the score NaN and the argmax the first such prototype.
    The result for a token does not depend on other tokens, and repeats bitwise on one device and configuration.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes, devices or a metric that do not fit.
        RuntimeError: the same from the native backends, or an input that requires a gradient.

    Example:
        >>> scores, nearest = vtkernels.prototype_scores(torch.randn(1, 576, 1024), torch.randn(64, 1024))
        >>> scores.shape, nearest.dtype
        (torch.Size([1, 576]), torch.int64)

    Source: the redundancy score of RedundancyCodebook (arXiv 2503.20540).
    """
    no_grad_needed("prototype_scores", tokens=tokens, prototypes=prototypes)
    return _op(tokens, prototypes, metric=metric, prototype_rnorm=prototype_rnorm)
