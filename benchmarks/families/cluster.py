"""Bipartite matching, merging and clustering, as published code writes them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vtkernels.testing import clustered

from ..call import Call
from ..case import Case, Counts
from .family import Family

F32, BF16 = torch.float32, torch.bfloat16
_BOTH = ("cpu", "gpu")


def match_usual(tokens: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Even tokens are the sources, odd ones the targets; the best r sources by a sort of all."""
    unit = tokens / tokens.norm(dim=-1, keepdim=True)
    best, target = (unit[:, ::2] @ unit[:, 1::2].mT).max(-1)
    chosen = best.argsort(-1, descending=True)[:, :r].sort(-1).values
    kept = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device).scatter_(1, 2 * chosen, False)
    rows = kept.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[:, :tokens.shape[1] - r]
    return 2 * chosen, 2 * target.gather(1, chosen) + 1, best.gather(1, chosen), rows


def merge_usual(tokens: Tensor, assignment: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    index = assignment[..., None].expand_as(tokens)
    out = tokens.new_zeros(tokens.shape[0], groups, tokens.shape[-1])
    merged = out.scatter_reduce(1, index, tokens, "mean", include_self=False)
    sizes = tokens.new_zeros(tokens.shape[0], groups).scatter_add(1, assignment, tokens.new_ones(assignment.shape))
    return merged, sizes.float()


def merge_index_add(tokens: Tensor, assignment: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Whole rows are added at once; one row of the batch after the other."""
    sizes = tokens.new_zeros(tokens.shape[0], groups).scatter_add(1, assignment, tokens.new_ones(assignment.shape))
    sums = torch.stack([torch.zeros(groups, tokens.shape[-1], dtype=tokens.dtype, device=tokens.device)
                        .index_add(0, a, t) for a, t in zip(assignment, tokens, strict=True)])
    return sums / sizes[..., None].clamp_min(1), sizes.float()


def density_usual(features: Tensor, clusters: int, neighbours: int) -> tuple[Tensor, Tensor]:
    distance = torch.cdist(features, features) / features.shape[-1] ** 0.5
    density = (-distance.topk(neighbours, -1, largest=False).values.square().mean(-1)).exp()
    denser = density[:, None, :] > density[:, :, None]
    furthest = distance.flatten(1).amax(-1)[:, None, None]
    delta = torch.where(denser, distance, furthest).amin(-1)
    centres = (density * delta).topk(clusters).indices.sort(-1).values
    to_centres = distance.gather(1, centres[..., None].expand(-1, -1, distance.shape[-1]))
    return to_centres.argmin(1), centres


def kmeans_usual(features: Tensor, initial: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    centres = initial
    for _ in range(iterations):
        member = F.one_hot(torch.cdist(features, centres).argmin(-1), centres.shape[1]).to(features.dtype)
        counts = member.sum(1)[..., None]
        centres = torch.where(counts > 0, (member.mT @ features) / counts.clamp_min(1), centres)
    return torch.cdist(features, centres).argmin(-1), centres


def kmedoids_usual(features: Tensor, clusters: int, iterations: int) -> tuple[Tensor, Tensor]:
    """The start by farthest points, then medoids of least distance within their cluster, from one distance matrix."""
    distance = torch.cdist(features, features)
    rows = torch.arange(len(features))
    medoids = [features.norm(dim=-1).argmax(-1)]
    nearest = distance[rows, medoids[0]]
    for _ in range(clusters - 1):
        medoids.append(nearest.argmax(-1))
        nearest = torch.minimum(nearest, distance[rows, medoids[-1]])
    chosen = torch.stack(medoids, 1).sort(-1).values
    for _ in range(iterations):
        to_medoids = distance.gather(1, chosen[..., None].expand(-1, -1, distance.shape[-1]))
        member = F.one_hot(to_medoids.argmin(1), clusters).to(distance.dtype)
        cost = torch.where(member > 0, distance @ member, torch.inf)
        moved = cost.argmin(1).sort(-1).values
        if torch.equal(moved, chosen):
            break
        chosen = moved
    to_medoids = distance.gather(1, chosen[..., None].expand(-1, -1, distance.shape[-1]))
    return to_medoids.argmin(1), chosen


def _features(case: Case, device: torch.device) -> Tensor:
    features = clustered(case.B * case.N, case.D, centres=max(2, case.N // 16), seed=5)
    return features.view(case.B, case.N, case.D).to(case.dtype).to(device)


def _match(case: Case, device: torch.device) -> Call:
    args = (_features(case, device), case.k)
    return Call(args, {}, args, "generated clusters")


def _merge(case: Case, device: torch.device) -> Call:
    """A quarter of the tokens go into one of the others."""
    pick = torch.rand(case.B, case.N, generator=torch.Generator().manual_seed(3)).argsort(-1)
    groups = case.N - case.k
    assignment = torch.empty_like(pick).scatter_(1, pick, torch.arange(case.N).remainder(groups).expand_as(pick))
    args = (_features(case, device), assignment.to(device), groups)
    return Call(args, {}, args, "generated clusters")


def _density(case: Case, device: torch.device) -> Call:
    args = (_features(case, device), case.K)
    return Call(args, {"neighbours": 5}, (*args, 5), "generated clusters")


def _kmeans(case: Case, device: torch.device) -> Call:
    features = _features(case, device)
    initial = features[:, ::case.N // case.K][:, :case.K].float().contiguous()
    return Call((features, case.K), {"initial": initial, "iterations": 10}, (features, initial, 10),
                "generated clusters")


def _kmedoids(case: Case, device: torch.device) -> Call:
    args = (_features(case, device), case.K)
    return Call(args, {"iterations": 20}, (*args, 20), "generated clusters")


def _match_counts(c: Case) -> Counts:
    read = c.tokens * c.D * c.dtype.itemsize
    return Counts(read + 20 * c.kept + 8 * (c.tokens - c.kept), c.B * c.N * c.N * c.D // 2)


def _merge_counts(c: Case) -> Counts:
    out = (c.tokens - c.kept) * (c.D * c.dtype.itemsize + 4)
    return Counts(c.tokens * (c.D * c.dtype.itemsize + 8) + out, c.tokens * c.D)


def _pairwise_counts(c: Case) -> Counts:
    return Counts(c.tokens * (c.D * c.dtype.itemsize + 8) + 8 * c.B * c.K, c.B * c.N * c.N * c.D)


def _kmeans_counts(c: Case) -> Counts:
    read = (c.tokens + c.B * c.K) * c.D * c.dtype.itemsize
    return Counts(read + 8 * c.tokens + 4 * c.B * c.K * c.D, 10 * 2 * c.tokens * (c.K + 1) * c.D)


def _check_match(case: Case, call: Call, outputs: tuple) -> None:
    sources, targets, scores, kept = outputs
    unit = F.normalize(call.args[0].double(), dim=-1)
    similarity = unit[:, ::2] @ unit[:, 1::2].mT
    best = similarity.amax(-1)
    assert float((best.gather(1, sources // 2) - scores).abs().max()) <= 1e-4, "not the best similarity"
    attained = similarity.flatten(1).gather(1, sources // 2 * similarity.shape[-1] + targets // 2)
    assert float((attained - scores).abs().max()) <= 1e-4, "not the similarity of the target"
    assert float((best.topk(case.k).values.amin(-1) - scores.amin(-1)).abs().max()) <= 1e-4, "not the best sources"
    whole = torch.cat([sources, kept], 1).sort(-1).values
    assert torch.equal(whole, torch.arange(case.N).expand_as(whole)), "kept and sources are not all tokens"


def _check_merge(case: Case, call: Call, outputs: tuple) -> None:
    tokens, assignment, groups = call.args
    gold, sizes = merge_usual(tokens.double(), assignment, groups)
    assert torch.equal(outputs[1], sizes), "not the sizes"
    allowed = 1e-5 if case.dtype == F32 else 2e-2
    assert float((outputs[0] - gold).abs().max()) <= allowed * float(gold.abs().max()), "not the means of float64"


def _peer_merge(case: Case, call: Call, theirs: tuple, ours: tuple) -> None:
    _check_merge(case, call, theirs)


def _check_assignment(case: Case, call: Call, outputs: tuple) -> None:
    """Every token belongs to its nearest centre, by distances in float64."""
    assignment, centres = outputs
    features = call.args[0].double()
    assert bool(((assignment >= 0) & (assignment < case.K)).all()), "a cluster that does not exist"
    if not centres.is_floating_point():
        assert bool(((centres >= 0) & (centres < case.N)).all()), "a centre outside the row"
        centres = features.gather(1, centres[..., None].expand(-1, -1, case.D))
    distance = torch.cdist(features, centres.double(), compute_mode="donot_use_mm_for_euclid_dist")
    chosen = distance.gather(-1, assignment[..., None])[..., 0]
    assert float((chosen - distance.amin(-1)).max()) <= 1e-3 * float(distance.max()), "a nearer centre exists"


def _peer_match(case: Case, call: Call, theirs: tuple, ours: tuple) -> None:
    _check_match(case, call, theirs)


def _inertia(case: Case, call: Call, outputs: tuple) -> float:
    assignment, centres = outputs
    features = call.args[0].double()
    if not centres.is_floating_point():
        centres = features.gather(1, centres[..., None].expand(-1, -1, case.D))
    member = centres.double().gather(1, assignment[..., None].expand(-1, -1, case.D))
    return float((features - member).square().sum())


def _peer_clusters(case: Case, call: Call, theirs: tuple, ours: tuple) -> None:
    """The same method: clusters as tight as ours, though near ties may fall otherwise."""
    _check_assignment(case, call, theirs)
    assert abs(_inertia(case, call, theirs) / _inertia(case, call, ours) - 1) <= 0.02, "other clusters"


OPS = {
    "match_bipartite": Family(
        (Case("match_bipartite", "2880x4096-r25", F32, _BOTH, N=2880, D=4096, keep=0.25),
         Case("match_bipartite", "tiny", F32, ("quick",), B=2, N=40, D=16)),
        _match_counts, _match, {"eager": match_usual}, _check_match, _peer_match),
    "merge_tokens": Family(
        (Case("merge_tokens", "2880x4096-r25", F32, _BOTH, N=2880, D=4096, keep=0.25),
         Case("merge_tokens", "16x576x1024-r25", BF16, _BOTH, B=16, N=576, D=1024, keep=0.25),
         Case("merge_tokens", "tiny", F32, ("quick",), B=2, N=40, D=16)),
        _merge_counts, _merge, {"eager": merge_usual, "better": merge_index_add}, _check_merge, _peer_merge),
    "cluster_density_peaks": Family(
        (Case("cluster_density_peaks", "2880x1024-K64", F32, _BOTH, N=2880, D=1024, K=64),
         Case("cluster_density_peaks", "tiny", F32, ("quick",), B=2, N=40, D=16, K=4)),
        _pairwise_counts, _density, {"eager": density_usual}, _check_assignment, _peer_clusters),
    "cluster_kmeans": Family(
        (Case("cluster_kmeans", "2880x1024-K64", F32, _BOTH, N=2880, D=1024, K=64),
         Case("cluster_kmeans", "tiny", F32, ("quick",), B=2, N=40, D=16, K=4)),
        _kmeans_counts, _kmeans, {"eager": kmeans_usual}, _check_assignment, _peer_clusters),
    "cluster_kmedoids": Family(
        (Case("cluster_kmedoids", "6x98x512-K49", F32, _BOTH, B=6, N=98, D=512, K=49),
         Case("cluster_kmedoids", "tiny", F32, ("quick",), B=2, N=40, D=16, K=4)),
        _pairwise_counts, _kmedoids, {"eager": kmedoids_usual}, _check_assignment, _peer_clusters, compiles=False),
}
