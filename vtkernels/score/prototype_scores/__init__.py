"""Score tokens by their similarity to the nearest prototype."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.prototype_scores.default


def prototype_scores(tokens: Tensor, prototypes: Tensor, *, metric: str = "cosine",
                     prototype_rnorm: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Similarity of each token to its nearest prototype, and which prototype that is. Never stores tokens x prototypes.

    Args:
        tokens: `[B, N, D]` or `[T, D]`, float32, float16 or bfloat16, any strides. With grouped prototypes
            `[B, N, G, d]` or `[T, G, d]`.
        prototypes: `[P, D]`, P >= 1, dtype and device of `tokens`, any strides. Grouped, one codebook for each part of
            a token: `[G, P, d]`. With a view `tokens.transpose(0, 1)` of `[B, N, D]` as `[T, G, d]`, each image has
            prototypes of its own.
        metric: `"cosine"`; `"dot"` for the plain inner product; `"l2"` for the negative squared distance.
        prototype_rnorm: `[P]` float32 reciprocal L2 norms of the prototypes (0 for a zero prototype), to save their
            computation; only with `"cosine"` and without groups.

    Returns:
        scores: `[B, N]` or `[T]`, with groups `[B, N, G]` or `[T, G]`, float32: `max_p <x, p> / (|x| |p|)`, or
            `max_p <x, p>`, or `-min_p |x - p|^2`.
        argmax: the same shape, int64: the prototype of the maximum of `<x, p> / |p|`, or `<x, p>`, or
            `<x, p> - |p|^2 / 2`; ties go to the lowest index.

    Numbers: products and sums in float32, prototypes are not rounded after normalisation. With `"cosine"`, a token or a
    prototype whose squared norm is under the smallest normal float32 counts as zero and has similarity 0 (and of
    bfloat16, as some processors multiply, any number or product under it may count as zero); one whose squared norm
    overflows float32 has similarity NaN. `"l2"` is `2 max_p (<x, p> - |p|^2 / 2) - |x|^2`, at most 0, so its error is
    that of numbers as large as `|x|^2 + |p|^2`; where those are not finite it is -inf or NaN. A NaN among what the
    argmax is taken of is the argmax, the first of them, and makes the score NaN. The result for a token does not depend
    on other tokens, and repeats bitwise on one device and configuration.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes, devices or a metric that do not fit.
        RuntimeError: the same from the native backends, or an input that requires a gradient.

    Example:
        >>> scores, nearest = vtkernels.prototype_scores(torch.randn(1, 576, 1024), torch.randn(64, 1024))
        >>> scores.shape, nearest.dtype
        (torch.Size([1, 576]), torch.int64)
        >>> codebooks = torch.tensor([[[0.0], [1.0]], [[5.0], [3.0]]])  # two groups of two codewords of width 1
        >>> vtkernels.prototype_scores(torch.tensor([[[0.75], [4.5]]]), codebooks, metric="l2")
        (tensor([[-0.0625, -0.2500]]), tensor([[1, 0]]))

    Source: the redundancy score of RedundancyCodebook (arXiv 2503.20540); the codeword search of multi-codebook vector
    quantisation.
    """
    no_grad_needed("prototype_scores", tokens=tokens, prototypes=prototypes)
    return _op(tokens, prototypes, metric=metric, prototype_rnorm=prototype_rnorm)
