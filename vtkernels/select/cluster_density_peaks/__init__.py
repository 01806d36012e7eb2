"""Cluster tokens around the peaks of their density."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.cluster_density_peaks.default


def cluster_density_peaks(features: Tensor, clusters: int, *, neighbours: int = 5) -> tuple[Tensor, Tensor]:
    """DPC-KNN: centres are tokens in dense places far from denser ones, and every token joins its nearest centre.

    With `dist(i, j) = |x_i - x_j| / sqrt(D)`: the density of a token is `exp(-mean dist^2)` over its `neighbours`
    nearest tokens, itself included as in the published code; `delta` is the distance to the nearest denser token, or
    the largest finite distance of the row when none is denser. The centres are the K tokens of the largest
    `density * delta`.

    Args:
        features: `[B, N, D]` float32, float16 or bfloat16, any strides.
        clusters: K, 1 to N (0 without tokens). A host number.
        neighbours: 1 to N, the token itself being the first.

    Returns:
        assignment: `[B, N]` int64, the place in `centres` of each token's nearest centre; a centre joins itself.
        centres: `[B, K]` int64 tokens, ascending.

    Ties and NaN: of equally dense tokens the lower one counts as denser, which stands for the random noise of the
    published code; densities are compared by their mean squared distance. Equal scores prefer the lower token, a NaN
    score ranks last, equally near centres the lower one. A token with a NaN, an infinity, or a squared norm that
    overflows float32 is void: it is infinitely far from every token, has a NaN score, and joins centre 0 unless it is a
    centre.

    Numbers: squared distances are `|x|^2 + |y|^2 - 2 <x, y>` in float32, at least 0; their mean is summed in float64.
    The distances of one row at a time (all rows on a GPU), N x N float32, are stored.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes, or a number out of its range.
        RuntimeError: the same from the native backends, or features that require a gradient.

    Example:
        >>> features = torch.tensor([[[0.0], [0.1], [0.2], [5.0], [5.1], [5.3]]])
        >>> vtkernels.cluster_density_peaks(features, 2, neighbours=3)
        (tensor([[0, 0, 0, 1, 1, 1]]), tensor([[1, 4]]))

    Source: DPC-KNN as in TCFormer (arXiv 2204.08680), HoliTom (2505.21334) and SparseVLM (2410.04417).
    """
    no_grad_needed("cluster_density_peaks", features=features)
    return _op(features, clusters, neighbours=neighbours)
