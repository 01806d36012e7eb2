"""Plain torch, any device: one distance matrix per row of the batch."""

import torch
from torch import Tensor

from .._distances import nearest_centre, pairwise
from ..select_topk.reference import select_topk


def cluster_density_peaks(features: Tensor, clusters: int, *, neighbours: int = 5) -> tuple[Tensor, Tensor]:
    batch, n, d = features.shape
    device = features.device
    if batch == 0 or n == 0:
        return (torch.empty(batch, n, dtype=torch.int64, device=device),
                torch.empty(batch, clusters, dtype=torch.int64, device=device))
    width = max(1, d)
    squared, finite = pairwise(features, "squared")
    spread = (squared.topk(neighbours, largest=False).values.double().mean(-1) / width).float()
    spread = torch.where(finite, spread, torch.nan)  # a void token is never denser
    place = torch.arange(n, device=device)
    tied = (spread[:, None] == spread[..., None]) & (place < place[:, None])
    denser = (spread[:, None] < spread[..., None]) | tied  # [b, i, j]: j is denser than i
    largest = torch.where(squared.isfinite(), squared, 0.0).amax((-1, -2))[:, None]
    delta = torch.where(denser, squared, torch.inf).amin(-1)
    delta = (torch.where(denser.any(-1), delta, largest) / width).sqrt()
    centres = select_topk((-spread).exp() * delta, clusters)
    return nearest_centre(squared, centres), centres
