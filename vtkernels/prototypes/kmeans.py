"""Spherical k-means: centres that represent features by direction, as the cosine score sees them."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from .._checks import dense, fail, in_range, rank

BATCH = 4096  # rows at a time, so that memory beyond the features is BATCH x (D + count)


def build_kmeans(features: Tensor, count: int, *, seed: int = 0, iterations: int = 30) -> Tensor:
    """Cluster features by cosine similarity. Deterministic, on one device and torch version.

    Args:
        features: `[N, D]`, any floating dtype; computed in float64 if they are, else in float32. Rows of zero norm
            have no direction and count for nothing.
        count: centres, 1 <= count <= N. They start at distinct random rows.
        seed: of the start.
        iterations: at most this many; fewer when no row changes its centre any more.

    Returns:
        `[count, D]` centres of unit norm, in the dtype of the computation. A centre that loses all rows stays put.

    Raises:
        TypeError, ValueError: features that are not floating, finite and 2-D, or a count out of range.
    """
    op = "build_kmeans"
    dense(op, "features", features)
    if not features.is_floating_point():
        fail(TypeError, op, "features", f"a tensor of {features.dtype}", "a floating dtype")
    rank(op, "features", features, "N, D")
    in_range(op, "count", count, 1, features.shape[0], "at most one for each row")
    in_range(op, "iterations", iterations, 0, 10**6, "a number of rounds")
    if not all(rows.isfinite().all() for rows in features.split(BATCH)):
        fail(ValueError, op, "features", "a tensor with NaN or infinite entries", "finite entries")
    start = torch.randperm(features.shape[0], generator=torch.Generator().manual_seed(seed))[:count]
    centres = next(_unit_rows(features[start.to(features.device)], count))
    previous = None
    for _ in range(iterations):
        assigned, sums = [], torch.zeros_like(centres)
        for rows in _unit_rows(features, BATCH):
            nearest = (rows @ centres.T).argmax(1)
            sums += _sum_by(nearest, rows, count)
            assigned.append(nearest)
        norms = sums.norm(dim=1, keepdim=True)
        centres = torch.where(norms > 0, sums / norms, centres)
        current = torch.cat(assigned)
        if previous is not None and torch.equal(current, previous):
            break
        previous = current
    return centres


def nearest_centres(features: Tensor, centres: Tensor) -> Tensor:
    """`[N]` int64: the centre of largest cosine similarity for each row."""
    return torch.cat([(rows @ centres.T).argmax(1) for rows in _unit_rows(features, BATCH)])


def _sum_by(group: Tensor, rows: Tensor, count: int) -> Tensor:
    """`[count, D]` sums of the rows of each group, in a fixed order (index_add_ would use atomics on CUDA)."""
    sizes = torch.zeros(count, dtype=torch.int64, device=rows.device)
    sizes.scatter_add_(0, group, torch.ones_like(group))
    return F.embedding_bag(group.argsort(stable=True), rows, sizes.cumsum(0) - sizes, mode="sum")


def _unit_rows(features: Tensor, batch: int) -> Iterator[Tensor]:
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    for rows in features.split(batch):
        yield F.normalize(rows.to(dtype), dim=1)
