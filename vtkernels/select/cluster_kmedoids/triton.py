"""A matrix of distances; each iteration is a program per token for its cost and one per cluster for the medoid.

No iteration is left out, as that would need the host to wait.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup
from .._clusters import distances, farthest_kernel, nearest_centre
from .._distances import finite_rows


@triton.jit(do_not_specialize=["n"])
def cost_kernel(distance, n: tl.int64, label, cost, BLOCK: tl.constexpr):
    """Sum of the distances from a token to those of its cluster."""
    token = tl.program_id(0).to(tl.int64)
    row = token - token % n
    own = tl.load(label + token)
    total = tl.zeros((), tl.float64)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK).to(tl.int64)
        together = tl.load(label + row + place, mask=place < n, other=-2) == own
        d = tl.load(distance + token * n + place, mask=together, other=0.0)
        total += tl.sum(d.to(tl.float64), 0)
    tl.store(cost + token, total)


@triton.jit(do_not_specialize=["n", "clusters"])
def medoid_kernel(label, cost, n: tl.int64, medoids, clusters: tl.int64, BLOCK: tl.constexpr):
    """The member of least cost of a cluster, the lowest among equals. A cluster of no member keeps its medoid."""
    item = tl.program_id(0).to(tl.int64)
    row = item // clusters * n
    least = tl.full((), float("inf"), tl.float64)
    best = n
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK).to(tl.int64)
        member = tl.load(label + row + place, mask=place < n, other=-1) == item % clusters
        value = tl.load(cost + row + place, mask=member, other=float("inf"))
        lowest = tl.min(value, 0)
        first = tl.min(tl.where(member & (value == lowest), place, n), 0)
        better = (first < n) & ((lowest < least) | (best == n))
        best = tl.where(better, first, best)
        least = tl.where(better, lowest, least)
    if best < n:
        tl.store(medoids + item, best)


def cluster_kmedoids_out(features: Tensor, clusters: int, *, iterations: int = 100, metric: str = "l2",
                         out_assignment: Tensor, out_medoids: Tensor) -> None:
    batch, n, d = features.shape
    if batch == 0 or n == 0:
        return
    device = features.device
    config = lookup.config("cluster_kmedoids", _triton.device_name(device), features.dtype, n=n, d=d)
    options = {"BLOCK": config["select_block"], "num_warps": config["num_warps"], "num_stages": config["num_stages"]}
    distance = distances(features, config, cosine=metric == "cosine", root=metric == "l2")
    # The two of a pair must be equally far from each other, or rounding would choose between them.
    distance = torch.minimum(distance, distance.mT)
    x, finite = finite_rows(features)
    value = x.square().sum(-1).masked_fill(~finite, -1.0)
    medoids = torch.empty(batch, clusters, dtype=torch.int64, device=device)
    for step in range(clusters):
        _triton.launch(farthest_kernel, batch, device, distance, n * n, n, n, value, medoids, clusters, step, **options)
    medoids = medoids.sort(-1).values
    label = torch.empty(batch, n, dtype=torch.int32, device=device)
    cost = torch.empty(batch, n, dtype=torch.float64, device=device)
    nearest_centre(distance, medoids, out_assignment, label, config)
    for _ in range(iterations):
        _triton.launch(cost_kernel, batch * n, device, distance, n, label, cost, **options)
        _triton.launch(medoid_kernel, batch * clusters, device, label, cost, n, medoids, clusters, **options)
        medoids = medoids.sort(-1).values
        nearest_centre(distance, medoids, out_assignment, label, config)
    out_medoids.copy_(medoids)
