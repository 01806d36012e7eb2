"""Density peaks of many features, in tiles: the matrix of distances is never stored."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._checks import fail, floating, in_range, no_grad_needed, rank
from ..select._distances import lowest_argmax
from ..select.cluster_density_peaks import cluster_density_peaks
from ..select.select_topk import select_topk

WHOLE = 4096  # up to here the op may store its matrix, 64 MiB
TILE = 2048   # rows and columns of a tile: 16 MiB, beside two blocks of features in float32


def density_peaks(features: Tensor, clusters: int, *, neighbours: int = 5) -> tuple[Tensor, Tensor]:
    """`vtkernels.cluster_density_peaks` of one row of tokens, for any number of them.

    The rules are those of the op, ties and NaN included. Up to 4,096 tokens it is the op. Above, squared distances
    are computed tile by tile (memory: the features, one tile and a few numbers per token): once for every pair, to find
    the neighbours, and once more for each pair of a token with a denser one.

    Args:
        features: `[N, D]` float32, float16 or bfloat16.
        clusters: K, 1 to N.
        neighbours: 1 to N, the token itself being the first.

    Returns:
        assignment: `[N]` int64, the place in `centres` of each token's nearest centre.
        centres: `[K]` int64 tokens, ascending.

    Raises:
        TypeError, ValueError: a dtype, a shape or a number out of its range.

    Source: as `vtkernels.cluster_density_peaks`.
    """
    op = "density_peaks"
    floating(op, "features", features)
    rank(op, "features", features, "N, D")
    no_grad_needed(op, features=features)
    n = features.shape[0]
    if n == 0:
        fail(ValueError, op, "features", "empty", "at least one token")
    in_range(op, "clusters", clusters, 1, n, "at most one for each token")
    in_range(op, "neighbours", neighbours, 1, n, "the token itself is the first")
    if n <= WHOLE:
        assignment, centres = cluster_density_peaks(features[None], clusters, neighbours=neighbours)
        return assignment[0], centres[0]
    return _tiled(features, clusters, neighbours)


def build_density_peaks(features: Tensor, count: int, *, neighbours: int = 5) -> Tensor:
    """The cheap recipe: the `count` features that are density peaks, as they are. See `density_peaks`.

    Raises:
        TypeError, ValueError: as `density_peaks`; features with NaN or infinite entries.
    """
    floating("build_density_peaks", "features", features)
    if not features.isfinite().all():
        fail(ValueError, "build_density_peaks", "features", "a tensor with NaN or infinite entries", "finite entries")
    if features.dim() == 2:
        in_range("build_density_peaks", "count", count, 1, features.shape[0], "at most one for each row")
    return features[density_peaks(features, count, neighbours=min(neighbours, len(features)))[1]]


def _tiled(features: Tensor, clusters: int, neighbours: int) -> tuple[Tensor, Tensor]:
    d = features.shape[1]
    squares = torch.cat([block.float().square().sum(1) for block in features.split(TILE)])
    finite = squares.isfinite()
    nearest, largest = _nearest(features, squares, neighbours)
    spread = (nearest.double().mean(1) / max(1, d)).float()
    order = torch.where(finite, spread, torch.inf).argsort(stable=True)  # the densest first, void ones last
    order = torch.cat([order[finite[order]], order[~finite[order]]])
    delta = torch.empty_like(spread)
    delta[order] = _nearest_denser(features[order], squares[order])
    delta[order[0]] = largest
    score = torch.where(finite, (-spread).exp() * (delta / max(1, d)).sqrt(), torch.nan)
    centres = select_topk(score[None], clusters)[0]
    place = torch.arange(clusters, device=features.device)
    assignment = torch.cat([
        lowest_argmax(-_squared(block, features[centres], square, squares[centres]))
        for block, square in zip(features.split(TILE), squares.split(TILE), strict=True)])
    return assignment.scatter(0, centres, place), centres


def _nearest(features: Tensor, squares: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`[N, count]` smallest squared distances of each token, and the largest finite one of all."""
    smallest = squares.new_full((len(features), count), torch.inf)
    largest = squares.new_zeros(())
    for rows, columns, tile in _tiles(features, squares):
        largest = torch.maximum(largest, torch.where(tile.isfinite(), tile, 0.0).max())
        _keep_smallest(smallest[rows], tile)
        if rows != columns:
            _keep_smallest(smallest[columns], tile.T)
    return smallest, largest


def _keep_smallest(smallest: Tensor, distance: Tensor) -> None:
    both = torch.cat([smallest, distance], 1)
    smallest.copy_(both.topk(smallest.shape[1], largest=False).values)


def _nearest_denser(features: Tensor, squares: Tensor) -> Tensor:
    """`[N]` smallest squared distance to a token that stands before, infinite for the first one."""
    delta = torch.full_like(squares, torch.inf)
    for columns, rows, tile in _tiles(features, squares):
        distance = tile.T
        if rows == columns:
            distance = distance.masked_fill(torch.ones_like(distance, dtype=torch.bool).triu(), torch.inf)
        delta[rows] = torch.minimum(delta[rows], distance.amin(1))
    return delta


def _tiles(features: Tensor, squares: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """The tiles of squared distances on and above the diagonal."""
    n = len(features)
    for i in range(0, n, TILE):
        rows = slice(i, min(i + TILE, n))
        block = features[rows].float()
        for j in range(i, n, TILE):
            columns = slice(j, min(j + TILE, n))
            yield rows, columns, _squared(block, features[columns], squares[rows], squares[columns], i == j)


def _squared(x: Tensor, y: Tensor, x_squares: Tensor, y_squares: Tensor, same: bool = False) -> Tensor:
    """`[X, Y]` squared distances: at least 0, exactly 0 between a token and itself, infinite for void tokens."""
    x_finite, y_finite = x_squares.isfinite()[:, None], y_squares.isfinite()[:, None]
    product = x.float().masked_fill(~x_finite, 0.0) @ y.float().masked_fill(~y_finite, 0.0).T
    distance = (x_squares[:, None] + y_squares - 2 * product).clamp_min_(0.0)
    if same:
        distance.fill_diagonal_(0.0)
    return distance.masked_fill_(~(x_finite & y_finite.T), torch.inf)
