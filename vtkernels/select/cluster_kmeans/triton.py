"""A tile of tokens against all centres, then a program per centre and block of dimensions for the mean.

No iteration is left out, as that would need the host to wait.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...score.prototype_scores.reference import reciprocal_norms
from ...score.prototype_scores.triton import NO_KEY, aligned_stride, score_options, similarity_tile, token_tile
from ...tuning import lookup
from .._clusters import farthest_kernel
from .._distances import finite_rows


@triton.jit(do_not_specialize=["n", "d", "clusters", "step"])
def distance_to_chosen_kernel(points, n: tl.int64, d: tl.int64, chosen, clusters: tl.int64, step: tl.int64, out,
                              COSINE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Distances, squared or one minus the cosine, of a tile of tokens to the token chosen last."""
    item = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(n, BLOCK_N)
    batch = item // tiles
    row = item % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    points += batch * n * d
    centre = points + tl.load(chosen + batch * clusters + step) * d
    total = tl.zeros((BLOCK_N,), tl.float32)
    for block in range(0, d, BLOCK_D):
        dim = block + tl.arange(0, BLOCK_D)
        x = tl.load(points + row[:, None] * d + dim[None, :], mask=(row < n)[:, None] & (dim < d)[None, :], other=0.0)
        c = tl.load(centre + dim, mask=dim < d, other=0.0)[None, :]
        total += tl.sum(x * c if COSINE else (x - c) * (x - c), 1)
    if COSINE:
        total = 1 - total
        total = tl.where(total > 0, total, 0.0)
    tl.store(out + batch * n + row, total, mask=row < n)


@triton.jit(do_not_specialize=["n", "d", "clusters", "centre_batch", "centre_row", "out_batch"])
def assign_kernel(points, n: tl.int64, d: tl.int32, centres, centre_batch: tl.int64, centre_row: tl.int64,
                  clusters: tl.int32, weights, out, out_batch: tl.int64, label, COSINE: tl.constexpr,
                  UPCAST: tl.constexpr, FAST: tl.constexpr, EVEN_D: tl.constexpr, BLOCK_N: tl.constexpr,
                  BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
    """The nearest centre of a tile of tokens, the lowest among equals; `label`: K for those that count in no mean.

    `weights` is -1 for void tokens, which go to centre 0.
    """
    item = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(n, BLOCK_N)
    batch = item // tiles
    first = item % tiles * BLOCK_N
    wide_d = d.to(tl.int64)
    rows, is_token = token_tile(points + batch * n * wide_d, wide_d, first, n, FAST, BLOCK_N)
    centres += batch * centre_batch
    best = tl.full((BLOCK_N,), NO_KEY, tl.int32)
    nearest = tl.zeros((BLOCK_N,), tl.int32)
    for start in range(0, clusters, BLOCK_P):
        similarity, _ = similarity_tile(rows, is_token, 1, d, centres, aligned_stride(centres, centre_row, FAST), 1,
                                        start, clusters, None, 0, COSINE, not COSINE, UPCAST, FAST, EVEN_D, BLOCK_N,
                                        BLOCK_P, BLOCK_D)
        bits = (similarity + 0.0).to(tl.int32, bitcast=True)
        centre = (start + tl.arange(0, BLOCK_P))[None, :]
        key = tl.where((similarity == similarity) & (centre < clusters), bits ^ ((bits >> 31) & 0x7FFFFFFF), NO_KEY)
        tile_best = tl.max(key, 1)
        tile_nearest = tl.min(tl.where(key == tile_best[:, None], centre, 0x7FFFFFFF), 1)
        nearest = tl.where(tile_best > best, tile_nearest, nearest)
        best = tl.maximum(tile_best, best)
    token = first + tl.arange(0, BLOCK_N)
    weight = tl.load(weights + batch * n + token, mask=is_token, other=0.0)
    nearest = tl.where(weight < 0, 0, nearest)
    tl.store(out + batch * out_batch + token, nearest, mask=is_token)
    tl.store(label + batch * n + token, tl.where(weight > 0, nearest, clusters), mask=is_token)


@triton.jit(do_not_specialize=["n", "d", "clusters", "centre_batch", "centre_row"])
def mean_kernel(points, n: tl.int64, d: tl.int64, weights, members, begin, clusters: tl.int64, centres,
                centre_batch: tl.int64, centre_row: tl.int64, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """A block of one centre's dimensions, from its members in ascending order. A centre of no member stays."""
    item = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(d, BLOCK_D)
    cluster = item // blocks % clusters
    batch = item // blocks // clusters
    dim = item % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    points += batch * n * d
    first = tl.load(begin + batch * (clusters + 1) + cluster)
    last = tl.load(begin + batch * (clusters + 1) + cluster + 1)
    total = tl.zeros((BLOCK_D,), tl.float64)
    size = tl.zeros((), tl.float64)
    for m in range(first, last, BLOCK_M):
        place = m + tl.arange(0, BLOCK_M)
        token = tl.load(members + batch * n + place, mask=place < last, other=0)
        weight = tl.load(weights + batch * n + token, mask=place < last, other=0.0).to(tl.float64)
        mask = (place < last)[:, None] & (dim < d)[None, :]
        x = tl.load(points + token[:, None] * d + dim[None, :], mask=mask, other=0.0).to(tl.float64)
        total += tl.sum(x * weight[:, None], 0)
        size += tl.sum(weight, 0)
    if first < last:
        tl.store(centres + batch * centre_batch + cluster * centre_row + dim, (total / size).to(tl.float32),
                 mask=dim < d)


def cluster_kmeans_out(features: Tensor, clusters: int, *, iterations: int = 10, metric: str = "l2",
                       weights: Tensor | None = None, initial: Tensor | None = None, out_assignment: Tensor,
                       out_centres: Tensor) -> None:
    batch, n, d = features.shape
    if initial is not None:
        out_centres.copy_(initial)
    if batch == 0 or n == 0:
        return
    device = features.device
    cosine = metric == "cosine"
    config = lookup.config("cluster_kmeans", _triton.device_name(device), torch.float32, n=n, d=d, p=clusters)
    options = {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}
    x, finite = finite_rows(features)
    points = (x * reciprocal_norms(x)[..., None] if cosine else x).contiguous()
    if initial is None:
        start = _farthest_first(x, finite, points, clusters, cosine, config)
        out_centres.copy_(points.gather(1, start[..., None].expand(batch, clusters, d)))
    counts = torch.ones_like(finite, dtype=torch.float32) if weights is None else (
        weights.where((weights > 0) & weights.isfinite(), 0.0).contiguous())
    counts = counts.masked_fill(~finite, -1.0)
    label = torch.empty(batch, n, dtype=torch.int32, device=device)
    borders = torch.arange(clusters + 1, dtype=torch.int32, device=device).repeat(batch, 1)

    def assign() -> None:
        _triton.launch(assign_kernel, batch * triton.cdiv(n, config["block_n"]), device, points, n, d, out_centres,
                       *out_centres.stride()[:2], clusters, counts, out_assignment, out_assignment.stride(0), label,
                       COSINE=cosine, **score_options(points, out_centres, config), **options)

    assign()
    for _ in range(iterations):
        ordered, members = label.sort(stable=True, dim=-1)
        begin = torch.searchsorted(ordered, borders)
        blocks = triton.cdiv(d, config["select_block"])
        _triton.launch(mean_kernel, batch * clusters * blocks, device, points, n, d, counts, members, begin, clusters,
                       out_centres, *out_centres.stride()[:2], BLOCK_M=8, BLOCK_D=config["select_block"], **options)
        assign()


def _farthest_first(x: Tensor, finite: Tensor, points: Tensor, clusters: int, cosine: bool, config: dict) -> Tensor:
    batch, n, d = x.shape
    options = {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}
    value = x.square().sum(-1).masked_fill(~finite, -1.0)
    distance = torch.empty_like(value)
    chosen = torch.zeros(batch, clusters, dtype=torch.int64, device=x.device)
    tiles = triton.cdiv(n, 16)
    for step in range(clusters):
        if step:
            _triton.launch(distance_to_chosen_kernel, batch * tiles, x.device, points, n, d, chosen, clusters, step - 1,
                           distance, COSINE=cosine, BLOCK_N=16, BLOCK_D=config["select_block"], **options)
        _triton.launch(farthest_kernel, batch, x.device, distance, n, 0, n, value, chosen, clusters, step,
                       BLOCK=config["select_block"], **options)
    return chosen
