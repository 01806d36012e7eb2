"""Plain torch, any device: one distance matrix per row of the batch."""

import torch
from torch import Tensor

from .._distances import farthest_first, nearest_centre, pairwise


def new_medoids(distance: Tensor, finite: Tensor, assignment: Tensor, medoids: Tensor) -> Tensor:
    """[B, K] the member of each cluster with the least sum of distances, ascending; ties to the lowest token."""
    n = distance.shape[-1]
    together = (assignment[..., None] == assignment[:, None]) & finite[:, None]
    cost = torch.where(together, distance, 0.0).double().sum(-1)
    clusters = torch.arange(medoids.shape[1], device=medoids.device)
    candidate = (assignment[:, None] == clusters[:, None]) & finite[:, None]  # [B, K, N]
    costs = torch.where(candidate, cost[:, None], torch.inf)
    place = torch.arange(n, device=medoids.device)
    best = torch.where(candidate & (costs == costs.amin(-1, keepdim=True)), place, n).amin(-1)
    return torch.where(best < n, best, medoids).sort(-1).values


def cluster_kmedoids(features: Tensor, clusters: int, *, iterations: int = 100,
                     metric: str = "l2") -> tuple[Tensor, Tensor]:
    batch, n, _ = features.shape
    if batch == 0 or n == 0:
        return (torch.empty(batch, n, dtype=torch.int64, device=features.device),
                torch.empty(batch, clusters, dtype=torch.int64, device=features.device))
    distance, finite = pairwise(features, metric)
    medoids = farthest_first(features, clusters, metric).sort(-1).values
    assignment = nearest_centre(distance, medoids)
    for _ in range(iterations):
        before, medoids = medoids, new_medoids(distance, finite, assignment, medoids)
        assignment = nearest_centre(distance, medoids)
        if torch.equal(before, medoids):
            break
    return assignment, medoids
