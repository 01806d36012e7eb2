"""Cluster tokens around tokens."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.cluster_kmedoids.default


def cluster_kmedoids(features: Tensor, clusters: int, *, iterations: int = 100,
                     metric: str = "l2") -> tuple[Tensor, Tensor]:
    """k-medoids with a deterministic start: the centre of a cluster is its member with the least sum of distances.

    It starts from the tokens of KKZ: the one of the largest norm, then always the one farthest from its nearest chosen
    token. Each iteration replaces the medoid of every cluster and assigns the tokens again. It may end early only when
    the medoids stay the same, so the result is that of all iterations.

    Args:
        features: `[B, N, D]` float32, float16 or bfloat16, any strides.
        clusters: K, 1 to N (0 without tokens). A host number.
        iterations: how many at most; 0 assigns to the initial medoids.
        metric: `"l2"` for Euclidean distances, or `"cosine"` for one minus the cosine.

    Returns:
        assignment: `[B, N]` int64, the place in `medoids` of each token's nearest medoid; a medoid joins itself.
        medoids: `[B, K]` int64 tokens, ascending, all distinct.

    Ties and NaN: equally near medoids, equal sums and equally far tokens prefer the lower token. A token with a NaN, an
    infinity, or a squared norm that overflows float32 is void: it is infinitely far from every token, so it joins
    cluster 0, counts in no sum, and is a medoid only where there are fewer than K others. A zero token has cosine 0.

    Numbers: distances in float32 from `|x|^2 + |y|^2 - 2 <x, y>`, at least 0, and their sums in float64. The distances
    of one row at a time (all rows on a GPU), N x N float32, are stored, but nothing of size K x N x N.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes, or a number out of its range.
        RuntimeError: the same from the native backends, or features that require a gradient.

    Example:
        >>> features = torch.tensor([[[0.0], [1.0], [2.0], [8.0], [9.0], [10.0]]])
        >>> vtkernels.cluster_kmedoids(features, 2)
        (tensor([[0, 0, 0, 1, 1, 1]]), tensor([[1, 4]]))

    Source: CenterCLIP (arXiv 2205.00823).
    """
    no_grad_needed("cluster_kmedoids", features=features)
    return _op(features, clusters, iterations=iterations, metric=metric)
