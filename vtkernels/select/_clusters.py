"""Triton kernels that the clustering ops share: distances, the farthest token, the nearest centre."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _triton
from ..score.prototype_scores.triton import (
    FLT_MAX,
    aligned_stride,
    reciprocal_norm,
    score_options,
    similarity_tile,
    token_tile,
)


@triton.jit(do_not_specialize=["batch_stride", "token_stride", "dim_stride", "n", "d"])
def distance_kernel(features, batch_stride: tl.int64, token_stride: tl.int64, dim_stride: tl.int64, n: tl.int64,
                    d: tl.int32, out, COSINE: tl.constexpr, ROOT: tl.constexpr, UPCAST: tl.constexpr,
                    FAST: tl.constexpr, EVEN_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
                    BLOCK_D: tl.constexpr):
    """A tile of the [N, N] distances of a row of the batch, infinite for void tokens."""
    item = tl.program_id(0).to(tl.int64)
    columns = tl.cdiv(n, BLOCK_P)
    tiles = tl.cdiv(n, BLOCK_N) * columns
    batch = item // tiles
    first = (item % tiles) // columns * BLOCK_N
    start = item % columns * BLOCK_P
    features += batch * batch_stride
    rows, is_token = token_tile(features, token_stride, first, n, FAST, BLOCK_N)
    similarity, squares = similarity_tile(
        rows, is_token, dim_stride, d, features, aligned_stride(features, token_stride, FAST), dim_stride, start, n,
        None, 0, COSINE, not COSINE, UPCAST, FAST, EVEN_D, BLOCK_N, BLOCK_P, BLOCK_D)
    if COSINE:
        similarity = similarity * reciprocal_norm(squares)[:, None]
    distance = 1 - similarity if COSINE else squares[:, None] - 2 * similarity
    distance = tl.where(distance <= 0, 0.0, distance)
    i = (first + tl.arange(0, BLOCK_N))[:, None]
    j = (start + tl.arange(0, BLOCK_P))[None, :]
    distance = tl.where(i == j, tl.where(squares <= FLT_MAX, 0.0, float("inf"))[:, None], distance)
    distance = tl.where(distance != distance, float("inf"), distance)
    if ROOT:
        distance = tl.sqrt_rn(distance)
    tl.store(out + (batch * n + i) * n + j, distance, mask=(i < n) & (j < n))


def distances(features: Tensor, config: dict, *, cosine: bool, root: bool) -> Tensor:
    """[B, N, N] distances: one minus the cosine, or squared ones, or their root."""
    batch, n, d = features.shape
    out = features.new_empty((batch, n, n), dtype=torch.float32)
    tiles = triton.cdiv(n, config["block_n"]) * triton.cdiv(n, config["block_p"])
    _triton.launch(distance_kernel, batch * tiles, features.device, features, *features.stride(), n, d, out,
                   COSINE=cosine, ROOT=root, **score_options(features, features, config),
                   num_warps=config["num_warps"], num_stages=config["num_stages"])
    return out


@triton.jit(do_not_specialize=["distance_batch", "distance_row", "n", "clusters", "step"])
def farthest_kernel(distance, distance_batch: tl.int64, distance_row: tl.int64, n: tl.int64, value, chosen,
                    clusters: tl.int64, step: tl.int64, BLOCK: tl.constexpr):
    """Choose a token: the first one by its value, the next ones by the distance to their nearest chosen one.

    `value` [B, N] holds what decides. It is -1 for void tokens, and becomes -2 for chosen ones.
    """
    batch = tl.program_id(0).to(tl.int64)
    chosen += batch * clusters
    value += batch * n
    last = tl.full((), -1, tl.int64)
    if step > 0:
        last = tl.load(chosen + step - 1)
        distance += batch * distance_batch + last * distance_row
    best = tl.full((), -3.0, tl.float32)
    pick = tl.zeros((), tl.int64)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK).to(tl.int64)
        far = tl.load(value + place, mask=place < n, other=-3.0)
        if step > 0:
            d = tl.load(distance + place, mask=place < n, other=0.0)
            # The norms of the first step stand for no distance yet.
            reach = tl.where((step == 1) & (far >= 0), float("inf"), far)
            far = tl.where(place == last, -2.0, tl.where(place < n, tl.minimum(reach, d), -3.0))
            tl.store(value + place, far, mask=place < n)
        highest = tl.max(far, 0)
        lowest = tl.min(tl.where(far == highest, place, n), 0)
        pick = tl.where(highest > best, lowest, pick)
        best = tl.maximum(highest, best)
    tl.store(chosen + step, pick)


@triton.jit(do_not_specialize=["n", "clusters", "out_batch"])
def nearest_kernel(distance, n: tl.int64, centres, clusters: tl.int64, out, out_batch: tl.int64, label,
                   BLOCK: tl.constexpr):
    """Each token to its nearest centre, the first among equals, and centres to themselves; `label`: void ones to -1."""
    item = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(n, BLOCK)
    batch = item // blocks
    place = item % blocks * BLOCK + tl.arange(0, BLOCK)
    distance += batch * n * n
    nearest = tl.full((BLOCK,), float("inf"), tl.float32)
    best = tl.zeros((BLOCK,), tl.int64)
    for c in range(0, clusters):
        centre = tl.load(centres + batch * clusters + c)
        d = tl.load(distance + centre * n + place, mask=place < n, other=0.0)
        d = tl.where(place == centre, -1.0, d)
        best = tl.where(d < nearest, c, best)
        nearest = tl.minimum(d, nearest)
    tl.store(out + batch * out_batch + place, best, mask=place < n)
    if label is not None:
        own = tl.load(distance + place * n + place, mask=place < n, other=0.0)
        tl.store(label + batch * n + place, tl.where(own == 0, best, -1), mask=place < n)


def nearest_centre(distance: Tensor, centres: Tensor, out: Tensor, label: Tensor | None, config: dict) -> None:
    batch, n = distance.shape[:2]
    block = config["select_block"]
    _triton.launch(nearest_kernel, batch * triton.cdiv(n, block), distance.device, distance, n, centres,
                   centres.shape[1], out, out.stride(0), label, BLOCK=block, num_warps=config["num_warps"],
                   num_stages=config["num_stages"])
