"""The similarity matrix by symmetric tiles, then one program per image that runs all picks."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ..._library import STATUS_BAD_INDEX
from ...score.prototype_scores.triton import reciprocal_norm
from ...tuning import lookup

MATRIX_BYTES = 2**29  # of the similarity matrices processed at a time, or one matrix where that is larger
BAD_INDEX = tl.constexpr(STATUS_BAD_INDEX)
# No distance, sum of distances or useful gain is as low.
PICKED = tl.constexpr(-float("inf"))
NO_NORM = tl.constexpr(torch.finfo(torch.float32).min)  # a NaN or infinite norm: picked last
LOW_WORD = tl.constexpr(2**32 - 1)
NO_RANK = tl.constexpr(-(2**63))


@triton.jit(do_not_specialize=["batch_stride", "token_stride", "dim_stride", "n", "d"])
def norm_kernel(features, batch_stride: tl.int64, token_stride: tl.int64, dim_stride: tl.int64, n: tl.int64,
                d: tl.int32, rnorm, BLOCK: tl.constexpr):
    """One token's reciprocal norm."""
    item = tl.program_id(0).to(tl.int64)
    features += item // n * batch_stride + item % n * token_stride
    squares = tl.zeros((BLOCK,), tl.float32)
    for block in range(0, d, BLOCK):
        dim = block + tl.arange(0, BLOCK)
        x = tl.load(features + dim.to(tl.int64) * dim_stride, mask=dim < d, other=0.0).to(tl.float32)
        squares += x * x
    tl.store(rnorm + item, reciprocal_norm(tl.sum(squares, 0)))


@triton.jit(do_not_specialize=["batch_stride", "token_stride", "dim_stride", "n", "d", "tiles"])
def similarity_kernel(features, batch_stride: tl.int64, token_stride: tl.int64, dim_stride: tl.int64, n: tl.int64,
                      d: tl.int32, tiles: tl.int64, rnorm, similarity, UPCAST: tl.constexpr, FAST: tl.constexpr,
                      EVEN_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """One tile of [B, N, N] cosine similarities on or under the diagonal, and its mirror image."""
    item = tl.program_id(0).to(tl.int64)
    row_tile = item // tiles % tiles
    column_tile = item % tiles
    if column_tile <= row_tile:
        image = item // tiles // tiles
        features += image * batch_stride
        if FAST:  # rows contiguous and on 16-byte boundaries
            WIDE: tl.constexpr = 128 // features.dtype.element_ty.primitive_bitwidth
            features = tl.multiple_of(features, 16)
            token_stride = token_stride // WIDE * WIDE
        row = row_tile * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
        column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
        rows = features + row[:, None] * token_stride
        columns = features + column[None, :] * token_stride
        products = tl.zeros((BLOCK_N, BLOCK_N), tl.float32)
        for block in range(0, d, BLOCK_D):
            dim = block + tl.arange(0, BLOCK_D)
            row_mask = (row < n)[:, None]
            column_mask = (column < n)[None, :]
            if not EVEN_D:
                row_mask = row_mask & (dim < d)[None, :]
                column_mask = column_mask & (dim < d)[:, None]
            if FAST:
                x = tl.load(rows + dim[None, :], mask=row_mask, other=0.0)
                y = tl.load(columns + dim[:, None], mask=column_mask, other=0.0)
            else:
                wide_dim = dim.to(tl.int64)
                x = tl.load(rows + wide_dim[None, :] * dim_stride, mask=row_mask, other=0.0)
                y = tl.load(columns + wide_dim[:, None] * dim_stride, mask=column_mask, other=0.0)
            if UPCAST:
                x = x.to(tl.float32)
                y = y.to(tl.float32)
            products = tl.dot(x, y, products, input_precision="ieee")
        rnorm += image * n
        row_rnorm = tl.load(rnorm + row, mask=row < n, other=0.0)
        column_rnorm = tl.load(rnorm + column, mask=column < n, other=0.0)
        products = products * (row_rnorm[:, None] * column_rnorm[None, :])
        similarity += image * n * n
        inside = (row < n)[:, None] & (column < n)[None, :]
        tl.store(similarity + row[:, None] * n + column[None, :], products,
                 mask=inside & (column[None, :] <= row[:, None]))
        tl.store(similarity + column[:, None] * n + row[None, :], tl.trans(products),
                 mask=tl.trans(inside) & (column[:, None] < row[None, :]))


@triton.jit(do_not_specialize=["n"])
def first_kernel(similarity, n: tl.int64, value, IS_SUM: tl.constexpr, BLOCK: tl.constexpr):
    """One token's distance to the nearest other token, or the sum of its distances to all others."""
    item = tl.program_id(0).to(tl.int64)
    token = item % n
    row = similarity + item * n
    total = tl.full((BLOCK,), 0.0 if IS_SUM else float("inf"), tl.float32)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK).to(tl.int64)
        distance = 1.0 - tl.load(row + place, mask=place < n, other=float("nan"))
        counts = (distance == distance) & (place != token)
        if IS_SUM:
            total += tl.where(counts, distance, 0.0)
        else:
            total = tl.minimum(total, tl.where(counts, distance, float("inf")))
    own = tl.load(row + token)
    result = tl.sum(total, 0) if IS_SUM else tl.min(total, 0)
    tl.store(value + item, tl.where(own == own, result, NO_NORM))


@triton.jit
def ranks(value, place, n):
    """int64: larger for a larger value (never NaN), then for a lower place. Places past `n` come last."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)  # + 0.0 turns -0 into +0
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(place < n, (key.to(tl.int64) << 32) | (LOW_WORD - place), NO_RANK)


@triton.jit
def best_rank(value, n, BLOCK: tl.constexpr):
    best = tl.full((BLOCK,), NO_RANK, tl.int64)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK).to(tl.int64)
        best = tl.maximum(best, ranks(tl.load(value + place, mask=place < n, other=0.0), place, n))
    return tl.max(best, 0)


@triton.jit
def pick_by_distance(token, is_first, row, value, n, IS_SUM: tl.constexpr, BLOCK: tl.constexpr):
    """Enter the distances to a pick into `value`. Returns the best rank of what is left."""
    best = tl.full((BLOCK,), NO_RANK, tl.int64)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK).to(tl.int64)
        old = tl.load(value + place, mask=place < n, other=PICKED)
        distance = 1.0 - tl.load(row + place, mask=place < n, other=float("nan"))
        before = tl.where(is_first, 0.0 if IS_SUM else float("inf"), old)
        if IS_SUM:
            new = before + tl.where(distance == distance, distance, 0.0)
        else:
            new = tl.where(distance < before, distance, before)  # not for NaN
        new = tl.where(old <= NO_NORM, old, new)
        new = tl.where(place == token, PICKED, new)
        tl.store(value + place, new, mask=place < n)
        best = tl.maximum(best, ranks(new, place, n))
    return tl.max(best, 0)


@triton.jit
def pick_by_determinant(token, gain, step, row, relevance, relevance_stride, factors, value, n, BLOCK: tl.constexpr,
                        BLOCK_K: tl.constexpr):
    """Add a row to `factors` and take its squares off `value`. Returns the best rank of what is left."""
    weight = tl.zeros((), tl.float32) + 1.0
    if relevance is not None:
        weight = tl.load(relevance + token * relevance_stride)
    root = tl.sqrt_rn(gain)
    best = tl.full((BLOCK,), NO_RANK, tl.int64)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK).to(tl.int64)
        old = tl.load(value + place, mask=place < n, other=PICKED)
        new = tl.where(old == PICKED, PICKED, NO_NORM)
        if gain > 0:
            entry = weight * tl.load(row + place, mask=place < n, other=0.0)
            if relevance is not None:
                entry = entry * tl.load(relevance + place * relevance_stride, mask=place < n, other=0.0)
            explained = tl.zeros((BLOCK,), tl.float32)
            for first in range(0, step, BLOCK_K):
                earlier = first + tl.arange(0, BLOCK_K).to(tl.int64)
                own = tl.load(factors + earlier * n + token, mask=earlier < step, other=0.0)
                others = tl.load(factors + earlier[:, None] * n + place[None, :],
                                 mask=(earlier < step)[:, None] & (place < n)[None, :], other=0.0)
                explained += tl.sum(own[:, None] * others, 0)
            factor = tl.div_rn(entry - explained, tl.zeros((BLOCK,), tl.float32) + root)
            tl.store(factors + step * n + place, factor, mask=place < n)
            left = old - factor * factor
            new = tl.where(old == PICKED, PICKED, tl.where(left > NO_NORM, left, NO_NORM))
        new = tl.where(place == token, PICKED, new)
        tl.store(value + place, new, mask=place < n)
        best = tl.maximum(best, ranks(new, place, n))
    return tl.max(best, 0)


@triton.jit
def first_left(value, n, BLOCK: tl.constexpr):
    """The lowest token that is not picked yet."""
    first = n
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK).to(tl.int64)
        picked = tl.load(value + place, mask=place < n, other=PICKED) == PICKED
        first = tl.minimum(first, tl.min(tl.where(picked, n, place), 0))
    return first


@triton.jit
def write_ascending(value, n, indices, BLOCK: tl.constexpr):
    done = tl.zeros((), tl.int64)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK).to(tl.int64)
        picked = tl.load(value + place, mask=place < n, other=0.0) == PICKED
        seen = tl.cumsum(picked.to(tl.int32), 0)
        tl.store(indices + done + seen - 1, place, mask=picked)
        done += tl.sum(picked.to(tl.int32), 0)


@triton.jit(do_not_specialize=["n", "k", "seed_batch", "seed_stride", "seed_count", "order_batch", "index_batch"])
def distance_kernel(similarity, value, n: tl.int64, k: tl.int64, seeds, seed_batch: tl.int64, seed_stride: tl.int64,
                    seed_count: tl.int64, order, order_batch: tl.int64, indices, index_batch: tl.int64, status,
                    IS_SUM: tl.constexpr, BLOCK: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    similarity += image * n * n
    value += image * n
    order += image * order_batch
    count = tl.zeros((), tl.int64)
    best = best_rank(value, n, BLOCK)
    if seeds is not None:
        for s in range(0, seed_count):
            seed = tl.load(seeds + image * seed_batch + s * seed_stride).to(tl.int64)
            inside = (seed >= 0) & (seed < n)
            if inside & (tl.load(value + seed, mask=inside, other=0.0) != PICKED):
                tl.debug_barrier()  # all have looked before one writes
                best = pick_by_distance(seed, count == 0, similarity + seed * n, value, n, IS_SUM, BLOCK)
                tl.store(order + count, seed)
                count += 1
            elif status is not None:
                tl.atomic_or(status, BAD_INDEX)
            tl.debug_barrier()
    for step in range(count, k):
        token = LOW_WORD - (best & LOW_WORD)
        best = pick_by_distance(token, step == 0, similarity + token * n, value, n, IS_SUM, BLOCK)
        tl.store(order + step, token)
    tl.debug_barrier()
    write_ascending(value, n, indices + image * index_batch, BLOCK)


@triton.jit(do_not_specialize=["n", "k", "relevance_batch", "relevance_stride", "order_batch", "index_batch"])
def determinant_kernel(similarity, value, factors, n: tl.int64, k: tl.int64, relevance, relevance_batch: tl.int64,
                       relevance_stride: tl.int64, order, order_batch: tl.int64, indices, index_batch: tl.int64,
                       BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    similarity += image * n * n
    value += image * n
    factors += image * k * n
    if relevance is not None:
        relevance += image * relevance_batch
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK).to(tl.int64)
        own = tl.load(similarity + place * (n + 1), mask=place < n, other=0.0)
        if relevance is not None:
            weight = tl.load(relevance + place * relevance_stride, mask=place < n, other=0.0)
            own = weight * own * weight
        tl.store(value + place, tl.where(own > NO_NORM, own, NO_NORM), mask=place < n)
    best = best_rank(value, n, BLOCK)
    for step in range(0, k):
        token = LOW_WORD - (best & LOW_WORD)
        key = (best >> 32).to(tl.int32)
        gain = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        if (gain > 0) == 0:
            token = first_left(value, n, BLOCK)
        best = pick_by_determinant(token, gain, step, similarity + token * n, relevance, relevance_stride, factors,
                                   value, n, BLOCK, BLOCK_K)
        tl.store(order + image * order_batch + step, token)
        tl.debug_barrier()  # the factors of the next token were written by other threads
    write_ascending(value, n, indices + image * index_batch, BLOCK)


def select_diverse_out(features: Tensor, k: int, *, objective: str = "max_min", relevance: Tensor | None = None,
                       seeds: Tensor | None = None, out_order: Tensor, out_indices: Tensor,
                       status: Tensor | None = None) -> None:
    batch, n, d = features.shape
    if batch == 0 or k == 0:
        return
    device = features.device
    config = lookup.config("select_diverse", _triton.device_name(device), features.dtype, n=n, d=d)
    fast = _triton.aligned16(features, *features.stride()[:-1])
    # Without alignment each element has an address of its own, in registers: tiles must be small.
    block_n, block_d = (config[name] if fast else min(limit, config[name]) for name, limit in
                        (("block_n", 64), ("block_d", 16)))
    tiles = triton.cdiv(n, block_n)
    images = max(1, min(batch, MATRIX_BYTES // (4 * n * n)))
    similarity = torch.empty(images, n, n, dtype=torch.float32, device=device)
    rnorm = torch.empty(images, n, dtype=torch.float32, device=device)
    value = torch.empty(images, n, dtype=torch.float32, device=device)
    factors = torch.empty(images, k, n, dtype=torch.float32, device=device) if objective == "dpp" else None
    is_sum = objective == "max_sum"
    block, pick = config["pick_block"], {"num_warps": config["pick_warps"], "num_stages": 1}
    for first in range(0, batch, images):
        some = slice(first, min(first + images, batch))
        x, order, indices = features[some], out_order[some], out_indices[some]
        count = x.shape[0]
        _triton.launch(norm_kernel, count * n, device, x, *x.stride(), n, d, rnorm, BLOCK=1024, num_warps=4,
                       num_stages=1)
        _triton.launch(similarity_kernel, count * tiles * tiles, device, x, *x.stride(), n, d, tiles, rnorm, similarity,
                       UPCAST=_triton.interpreted(), FAST=fast, EVEN_D=d % block_d == 0, BLOCK_N=block_n,
                       BLOCK_D=block_d, num_warps=config["num_warps"], num_stages=config["num_stages"])
        outputs = order, order.stride(0), indices, indices.stride(0)
        if objective == "dpp":
            weights = None if relevance is None else relevance[some]
            strides = (0, 0) if weights is None else weights.stride()
            _triton.launch(determinant_kernel, count, device, similarity, value, factors, n, k, weights, *strides,
                           *outputs, BLOCK=block, BLOCK_K=8, **pick)
            continue
        _triton.launch(first_kernel, count * n, device, similarity, n, value, IS_SUM=is_sum, BLOCK=block, **pick)
        given = None if seeds is None else seeds[some]
        strides = (0, 0) if given is None else given.stride()
        _triton.launch(distance_kernel, count, device, similarity, value, n, k, given, *strides,
                       0 if given is None else given.shape[1], *outputs, status, IS_SUM=is_sum, BLOCK=block, **pick)
