"""A tile of tokens against all prototypes: sums of exponentials and their maximum in registers.

With `over_tokens` the products are computed twice: first the sums over the tokens of a tile, which a second kernel adds
in the order of the tiles, then the weights.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup
from ..prototype_scores.triton import (
    aligned_stride,
    layout,
    reciprocal_norm,
    score_options,
    similarity_tile,
    token_tile,
)

BLOCK_SUM = 256


@triton.jit
def exponentials(token_rows, is_token, dim_stride, d, prototypes, prototype_stride, prototype_dim_stride, start, count,
                 prototype_rnorm, rnorm_stride, UPCAST: tl.constexpr, FAST: tl.constexpr, EVEN_D: tl.constexpr,
                 BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
    """exp of the cosines, 0 where there is no prototype."""
    similarity, squares = similarity_tile(
        token_rows, is_token, dim_stride, d, prototypes, prototype_stride, prototype_dim_stride, start, count,
        prototype_rnorm, rnorm_stride, True, False, UPCAST, FAST, EVEN_D, BLOCK_N, BLOCK_P, BLOCK_D)
    e = tl.exp(similarity * reciprocal_norm(squares)[:, None])
    return tl.where((start + tl.arange(0, BLOCK_P) < count)[None, :], e, 0.0)


@triton.jit(do_not_specialize=["token_batch", "token_stride", "dim_stride", "n", "d", "prototype_stride",
                               "prototype_dim_stride", "count", "rnorm_stride", "tiles"])
def token_sums_kernel(tokens, token_batch: tl.int64, token_stride: tl.int64, dim_stride: tl.int64, n: tl.int64,
                      d: tl.int32, prototypes, prototype_stride: tl.int64, prototype_dim_stride: tl.int64,
                      count: tl.int32, prototype_rnorm, rnorm_stride: tl.int64, tiles: tl.int64, partial,
                      UPCAST: tl.constexpr, FAST: tl.constexpr, EVEN_D: tl.constexpr, BLOCK_N: tl.constexpr,
                      BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
    """partial [B, tiles, P]: sums over the tokens of a tile."""
    item = tl.program_id(0).to(tl.int64)
    token_rows, is_token = token_tile(tokens + item // tiles * token_batch, token_stride, item % tiles * BLOCK_N, n,
                                      FAST, BLOCK_N)
    prototype_stride = aligned_stride(prototypes, prototype_stride, FAST)
    partial += item * count.to(tl.int64)
    for start in range(0, count, BLOCK_P):
        e = exponentials(token_rows, is_token, dim_stride, d, prototypes, prototype_stride, prototype_dim_stride,
                         start, count, prototype_rnorm, rnorm_stride, UPCAST, FAST, EVEN_D, BLOCK_N, BLOCK_P, BLOCK_D)
        prototype = start + tl.arange(0, BLOCK_P)
        sums = tl.sum(tl.where(is_token[:, None], e, 0.0), 0)
        tl.store(partial + prototype, sums, mask=prototype < count)


@triton.jit(do_not_specialize=["tiles", "count", "blocks"])
def add_sums_kernel(partial, tiles: tl.int64, count: tl.int64, blocks: tl.int64, sums, BLOCK: tl.constexpr):
    """sums [B, P] of partial [B, tiles, P]."""
    item = tl.program_id(0).to(tl.int64)
    row = item // blocks
    prototype = item % blocks * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for tile in range(0, tiles):
        total += tl.load(partial + (row * tiles + tile) * count + prototype, mask=prototype < count, other=0.0)
    tl.store(sums + row * count + prototype, total, mask=prototype < count)


@triton.jit(do_not_specialize=["token_batch", "token_stride", "dim_stride", "n", "d", "prototype_stride",
                               "prototype_dim_stride", "count", "rnorm_stride", "tiles", "out_batch"])
def softmax_kernel(tokens, token_batch: tl.int64, token_stride: tl.int64, dim_stride: tl.int64, n: tl.int64,
                   d: tl.int32, prototypes, prototype_stride: tl.int64, prototype_dim_stride: tl.int64,
                   count: tl.int32, prototype_rnorm, rnorm_stride: tl.int64, tiles: tl.int64, token_sums, out,
                   out_batch: tl.int64, UPCAST: tl.constexpr, FAST: tl.constexpr, EVEN_D: tl.constexpr,
                   BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    batch = item // tiles
    first = item % tiles * BLOCK_N
    token_rows, is_token = token_tile(tokens + batch * token_batch, token_stride, first, n, FAST, BLOCK_N)
    prototype_stride = aligned_stride(prototypes, prototype_stride, FAST)
    total = tl.zeros((BLOCK_N,), tl.float32)
    best = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, count, BLOCK_P):
        e = exponentials(token_rows, is_token, dim_stride, d, prototypes, prototype_stride, prototype_dim_stride,
                         start, count, prototype_rnorm, rnorm_stride, UPCAST, FAST, EVEN_D, BLOCK_N, BLOCK_P, BLOCK_D)
        total += tl.sum(e, 1)
        if token_sums is not None:
            prototype = start + tl.arange(0, BLOCK_P)
            over = tl.load(token_sums + batch * count.to(tl.int64) + prototype, mask=prototype < count, other=1.0)
            e = e * (e / over[None, :])
        # A maximum may lose NaN, a sum does not.
        best = tl.maximum(best, tl.max(tl.where(e == e, e, 0.0), 1))
        total = tl.where(tl.max((e != e).to(tl.int32), 1) > 0, float("nan"), total)
    tl.store(out + batch * out_batch + first + tl.arange(0, BLOCK_N), best / total, mask=is_token)


def prototype_softmax_scores_out(tokens: Tensor, prototypes: Tensor, *, over_tokens: bool = False,
                                 prototype_rnorm: Tensor | None = None, out: Tensor) -> None:
    if out.numel() == 0:
        return
    at = layout(tokens, prototypes)
    device = tokens.device
    config = lookup.config("prototype_softmax_scores", _triton.device_name(device), tokens.dtype, n=at.batch * at.n,
                           d=at.d, p=at.prototype_count)
    tiles = triton.cdiv(at.n, config["block_n"])
    args = (tokens, *tokens.stride(), at.n, at.d, prototypes, *prototypes.stride(), at.prototype_count, prototype_rnorm,
            0 if prototype_rnorm is None else prototype_rnorm.stride(0), tiles)
    options = {**score_options(tokens, prototypes, config), "num_warps": config["num_warps"],
               "num_stages": config["num_stages"]}
    sums = None
    if over_tokens:
        partial = torch.empty((at.batch, tiles, at.prototype_count), dtype=torch.float32, device=device)
        sums = torch.empty((at.batch, at.prototype_count), dtype=torch.float32, device=device)
        _triton.launch(token_sums_kernel, at.batch * tiles, device, *args, partial, **options)
        blocks = triton.cdiv(at.prototype_count, BLOCK_SUM)
        _triton.launch(add_sums_kernel, at.batch * blocks, device, partial, tiles, at.prototype_count, blocks, sums,
                       BLOCK=BLOCK_SUM, num_warps=4, num_stages=1)
    _triton.launch(softmax_kernel, at.batch * tiles, device, *args, sums, out, out.stride(0), **options)
