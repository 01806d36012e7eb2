"""Plain torch, any device: Lloyd's iterations from the centres of KKZ."""

import torch
from torch import Tensor

from ...score.prototype_scores.reference import reciprocal_norms
from .._distances import farthest_first, finite_rows, lowest_argmax


def assign(x: Tensor, finite: Tensor, centres: Tensor, metric: str) -> Tensor:
    """[B, N] nearest centre of each token: the largest `<x, c> - |c|^2 / 2`, or `<x, c> / |c|`."""
    scores = x @ centres.mT
    scores = scores * reciprocal_norms(centres)[:, None] if metric == "cosine" else (
        scores - 0.5 * centres.square().sum(-1)[:, None])
    assignment = lowest_argmax(torch.where(scores.isnan(), -torch.inf, scores))
    return assignment.masked_fill(~finite, 0)


def means(x: Tensor, weights: Tensor, assignment: Tensor, centres: Tensor) -> Tensor:
    """[B, K, D] weighted means, summed in float64; a centre of no weight stays."""
    members = torch.nn.functional.one_hot(assignment, centres.shape[1]).double() * weights.double()[..., None]
    total = members.sum(1)[..., None]
    mean = (members.mT @ x.double()) / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, mean.float(), centres)


def cluster_kmeans(features: Tensor, clusters: int, *, iterations: int = 10, metric: str = "l2",
                   weights: Tensor | None = None, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    batch, n, d = features.shape
    if batch == 0 or n == 0:
        centres = torch.empty(batch, clusters, d, device=features.device) if initial is None else initial.clone()
        return torch.empty(batch, n, dtype=torch.int64, device=features.device), centres
    x, finite = finite_rows(features)
    points = x * reciprocal_norms(x)[..., None] if metric == "cosine" else x
    if initial is None:
        start = farthest_first(features, clusters, metric)[..., None].expand(batch, clusters, d)
        centres = points.gather(1, start)
    else:
        centres = initial.clone(memory_format=torch.contiguous_format)
    counts = finite.float() if weights is None else weights.where(finite & (weights > 0) & weights.isfinite(), 0.0)
    assignment = assign(points, finite, centres, metric)
    for _ in range(iterations):
        centres = means(points, counts, assignment, centres)
        before, assignment = assignment, assign(points, finite, centres, metric)
        if torch.equal(before, assignment):
            break
    return assignment, centres
