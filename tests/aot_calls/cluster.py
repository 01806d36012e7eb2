"""match_bipartite, cluster_density_peaks, cluster_kmeans, cluster_kmedoids: aligned rows and others, every metric."""

from collections.abc import Iterator

import torch


def features(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(1, 64, 1024, dtype=dtype), torch.empty(1, 64, 130, dtype=dtype)[..., 1:]


def match(match: dict, dtype: torch.dtype) -> Iterator[tuple[tuple, dict]]:
    for x in features(dtype):
        yield (x, 16), {}
    yield (x, 16), {"source_bias": torch.empty(1, 64)}


def density_peaks(match: dict, dtype: torch.dtype) -> Iterator[tuple[tuple, dict]]:
    for x in features(dtype):
        yield (x, 8), {}
    yield (torch.empty(1, 1100, 16, dtype=dtype), 8), {}  # rows longer than a block


def kmeans(match: dict, dtype: torch.dtype) -> Iterator[tuple[tuple, dict]]:
    for x in features(dtype):
        for metric in ("l2", "cosine"):
            yield (x, 8), {"iterations": 1, "metric": metric}


def kmedoids(match: dict, dtype: torch.dtype) -> Iterator[tuple[tuple, dict]]:
    for x in features(dtype):
        for metric in ("l2", "cosine"):
            yield (x, 8), {"iterations": 1, "metric": metric}


CALLS = {"match_bipartite": match, "cluster_density_peaks": density_peaks, "cluster_kmeans": kmeans,
         "cluster_kmedoids": kmedoids}
FLOATING = {"match_bipartite", "cluster_density_peaks", "cluster_kmedoids"}
