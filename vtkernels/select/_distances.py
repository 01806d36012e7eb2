"""What the references of the clustering ops share. A token is void when float32 cannot hold its squared norm."""

import torch
from torch import Tensor

from ..score.prototype_scores.reference import reciprocal_norms


def finite_rows(features: Tensor) -> tuple[Tensor, Tensor]:
    """[.., N, D] float32 with zeros in the void rows, and which rows are not void."""
    x = features.float()
    finite = x.square().sum(-1).isfinite()
    return x.masked_fill(~finite[..., None], 0.0), finite


def pairwise(features: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """[B, N, N] distances (`"l2"`, `"squared"` or `"cosine"`), infinite for void tokens, and [B, N] which are not."""
    x, finite = finite_rows(features)
    products = x @ x.mT
    squares = products.diagonal(dim1=-2, dim2=-1)
    if metric == "cosine":
        rnorm = reciprocal_norms(x)
        distance = 1 - products * (rnorm[..., :, None] * rnorm[..., None, :])
    else:
        distance = squares[..., :, None] + squares[..., None, :] - 2 * products
    distance = distance.clamp_min(0.0)
    distance.diagonal(dim1=-2, dim2=-1).zero_()
    distance = torch.where(finite[..., :, None] & finite[..., None, :], distance, torch.inf)
    return distance.sqrt() if metric == "l2" else distance, finite


def lowest_argmax(values: Tensor) -> Tensor:
    """The first place of the maximum over the last dimension, which holds no NaN."""
    n = values.shape[-1]
    place = torch.arange(n, device=values.device)
    return torch.where(values == values.amax(-1, keepdim=True), place, n).amin(-1)


def farthest_first(features: Tensor, clusters: int, metric: str) -> Tensor:
    """[B, K] distinct tokens by the rule of KKZ: the largest norm, then the one farthest from its nearest chosen one.

    Void tokens come last.
    """
    x, finite = finite_rows(features)
    squares = x.square().sum(-1)
    unit = x * reciprocal_norms(x)[..., None] if metric == "cosine" else x
    batch, _, d = x.shape
    value = squares.masked_fill(~finite, -1.0)
    nearest = torch.full_like(value, torch.inf)
    chosen = torch.empty(batch, clusters, dtype=torch.int64, device=x.device)
    for step in range(clusters):
        pick = lowest_argmax(value)[:, None]
        chosen[:, step] = pick[:, 0]
        products = (unit @ unit.gather(1, pick[..., None].expand(batch, 1, d)).mT)[..., 0]
        distance = 1 - products if metric == "cosine" else squares + squares.gather(1, pick) - 2 * products
        distance = torch.where(finite.gather(1, pick), distance.clamp_min(0.0), torch.inf)
        nearest = torch.minimum(nearest, distance)
        value = nearest.masked_fill(~finite, -1.0).scatter(1, chosen[:, :step + 1], -2.0)
    return chosen


def nearest_centre(distance: Tensor, centres: Tensor) -> Tensor:
    """[B, N] place in `centres` [B, K] of each token's nearest one, ties to the first; centres go to themselves."""
    batch, n, _ = distance.shape
    clusters = centres.shape[-1]
    to_centres = distance.gather(-1, centres[:, None].expand(batch, n, clusters))
    place = torch.arange(clusters, device=centres.device)
    assignment = lowest_argmax(-to_centres)
    return assignment.scatter(1, centres, place.expand(batch, clusters))
