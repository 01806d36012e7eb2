"""Cluster tokens by k-means."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.cluster_kmeans.default


def cluster_kmeans(features: Tensor, clusters: int, *, iterations: int = 10, metric: str = "l2",
                   weights: Tensor | None = None, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Lloyd's k-means with a deterministic start.

    Each iteration moves every centre to the weighted mean of its tokens and assigns the tokens again. It may end early
    only when nothing changes any more, so the result is that of all iterations.

    Args:
        features: `[B, N, D]` float32, float16 or bfloat16, any strides.
        clusters: K, 1 to N (0 without tokens). A host number.
        iterations: how many at most; 0 assigns to the initial centres.
        metric: `"l2"`, or `"cosine"`: tokens are divided by their norm, assigned to the centre of the largest cosine,
            and a centre is the mean of its normalised tokens.
        weights: `[B, N]` float32 importance of each token in the means. What is not positive and finite counts as 0.
        initial: `[B, K, D]` float32 initial centres. Without it those of KKZ: the token of the largest norm, then
            always the one farthest from its nearest chosen token.

    Returns:
        assignment: `[B, N]` int64, the centre nearest to each token, of the centres returned.
        centres: `[B, K, D]` float32.

    Numbers: products in float32; the nearest centre has the largest `<x, c> - |c|^2 / 2`, or `<x, c> / |c|`; means are
    summed in float64, in a fixed order. Ties go to the lowest index, of a centre as of a token. A centre without weight
    stays where it is. A token with a NaN, an infinity, or a squared norm that overflows float32 is void: it is assigned
    to centre 0, counts in no mean and is an initial centre (of zeros) only where there are fewer than K others. A
    centre with such a value, among those given, is nobody's nearest. The result depends neither on the number of
    threads nor on other rows.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes, devices, or a number out of its range.
        RuntimeError: the same from the native backends, or an input that requires a gradient.

    Example:
        >>> features = torch.tensor([[[0.0], [1.0], [9.0], [10.0], [2.0]]])
        >>> assignment, centres = vtkernels.cluster_kmeans(features, 2)
        >>> assignment, centres
        (tensor([[1, 1, 0, 0, 1]]), tensor([[[9.5000],
                 [1.0000]]]))

    Source: KKZ as in CenterCLIP (arXiv 2205.00823); importance weights and cosine as in VMTC.
    """
    no_grad_needed("cluster_kmeans", features=features, weights=weights, initial=initial)
    return _op(features, clusters, iterations=iterations, metric=metric, weights=weights, initial=initial)
