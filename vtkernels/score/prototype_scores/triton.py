"""A tile of tokens against all prototypes: products by `tl.dot`, norms from the same tiles, maxima in registers."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup
from .reference import FLT_MIN as _FLT_MIN

FLT_MIN = tl.constexpr(_FLT_MIN)
FLT_MAX = tl.constexpr(torch.finfo(torch.float32).max)
NAN_KEY = tl.constexpr(2**31 - 1)  # over the key of +inf, so that a maximum of keys propagates NaN
NO_KEY = tl.constexpr(-(2**31))    # under the key of -inf


@triton.jit
def reciprocal_norm(squares):
    rnorm = tl.where(squares < FLT_MIN, 0.0, tl.rsqrt(squares))
    return tl.where(squares <= FLT_MAX, rnorm, float("nan"))


@triton.jit
def similarity_tile(token_rows, is_token, dim_stride, d, prototypes, prototype_stride, prototype_dim_stride, start,
                    count, prototype_rnorm, rnorm_stride, COSINE: tl.constexpr, L2: tl.constexpr,
                    UPCAST: tl.constexpr, FAST: tl.constexpr, EVEN_D: tl.constexpr, BLOCK_N: tl.constexpr,
                    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
    """What decides which prototype is nearest, [BLOCK_N, BLOCK_P] fp32, and squared norms of the tokens [BLOCK_N]."""
    column = tl.arange(0, BLOCK_P).to(tl.int64)
    prototype = start + tl.arange(0, BLOCK_P)
    is_prototype = prototype < count
    prototype_tile = prototypes + start * prototype_stride
    if FAST:
        prototype_tile = tl.multiple_of(prototype_tile, 16)
    prototype_rows = prototype_tile + column[None, :] * prototype_stride
    products = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    squares = tl.zeros((BLOCK_N,), tl.float32)
    prototype_squares = tl.zeros((BLOCK_P,), tl.float32)
    for block in range(0, d, BLOCK_D):
        dim = block + tl.arange(0, BLOCK_D)
        token_mask = is_token[:, None]
        prototype_mask = is_prototype[None, :]
        if not EVEN_D:
            token_mask = token_mask & (dim < d)[None, :]
            prototype_mask = prototype_mask & (dim < d)[:, None]
        if FAST:
            x = tl.load(token_rows + dim[None, :], mask=token_mask, other=0.0)
            y = tl.load(prototype_rows + dim[:, None], mask=prototype_mask, other=0.0)
        else:
            wide_dim = dim.to(tl.int64)
            x = tl.load(token_rows + wide_dim[None, :] * dim_stride, mask=token_mask, other=0.0)
            y = tl.load(prototype_rows + wide_dim[:, None] * prototype_dim_stride, mask=prototype_mask, other=0.0)
        wide_x = x.to(tl.float32)
        wide_y = y.to(tl.float32)
        if UPCAST:
            products = tl.dot(wide_x, wide_y, products, input_precision="ieee")
        else:
            products = tl.dot(x, y, products, input_precision="ieee")
        if COSINE or L2:
            squares += tl.sum(wide_x * wide_x, 1)
            if prototype_rnorm is None:
                prototype_squares += tl.sum(wide_y * wide_y, 0)
    if COSINE:
        if prototype_rnorm is None:
            rnorm = reciprocal_norm(prototype_squares)
        else:
            rnorm = tl.load(prototype_rnorm + prototype.to(tl.int64) * rnorm_stride, mask=is_prototype, other=0.0)
        products = products * rnorm[None, :]
    if L2:
        products = products - prototype_squares[None, :] * 0.5
    return products, squares


@triton.jit
def finish_score(best, squares, COSINE: tl.constexpr, L2: tl.constexpr):
    """The score of a token from what `similarity_tile` gave."""
    if COSINE:
        best = best * reciprocal_norm(squares)
    if L2:
        best = 2.0 * best - squares
        best = tl.where(best > 0, 0.0, best)
    return best + 0.0  # turns -0 into +0


@triton.jit
def token_tile(tokens, token_stride, first, n, FAST: tl.constexpr, BLOCK_N: tl.constexpr):
    """Pointers to the tokens from `first` on, of a row of n tokens (int64), and which of them exist."""
    row = tl.arange(0, BLOCK_N).to(tl.int64)
    tokens += first * token_stride
    if FAST:  # rows contiguous and on 16-byte boundaries; hints on the results of operations survive inlining
        WIDE: tl.constexpr = 128 // tokens.dtype.element_ty.primitive_bitwidth
        tokens = tl.multiple_of(tokens, 16)
        token_stride = token_stride // WIDE * WIDE
    return tokens + row[:, None] * token_stride, row < n - first


@triton.jit
def aligned_stride(prototypes, prototype_stride, FAST: tl.constexpr):
    if FAST:
        WIDE: tl.constexpr = 128 // prototypes.dtype.element_ty.primitive_bitwidth
        prototype_stride = prototype_stride // WIDE * WIDE
    return prototype_stride


@triton.jit
def score_tile(tokens, token_stride, dim_stride, first, n, d, prototypes, prototype_stride, prototype_dim_stride, count,
               prototype_rnorm, rnorm_stride, COSINE: tl.constexpr, UPCAST: tl.constexpr, FAST: tl.constexpr,
               EVEN_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
               L2: tl.constexpr = False):
    """Scores [BLOCK_N] fp32 and argmax [BLOCK_N] int32 of the tokens from `first` on, of a row of n tokens (int64)."""
    token_rows, is_token = token_tile(tokens, token_stride, first, n, FAST, BLOCK_N)
    prototype_stride = aligned_stride(prototypes, prototype_stride, FAST)
    best = tl.full((BLOCK_N,), NO_KEY, tl.int32)
    argmax = tl.zeros((BLOCK_N,), tl.int32)
    squares = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, count, BLOCK_P):
        prototype = start + tl.arange(0, BLOCK_P)
        similarity, squares = similarity_tile(
            token_rows, is_token, dim_stride, d, prototypes, prototype_stride, prototype_dim_stride, start, count,
            prototype_rnorm, rnorm_stride, COSINE, L2, UPCAST, FAST, EVEN_D, BLOCK_N, BLOCK_P, BLOCK_D)
        bits = (similarity + 0.0).to(tl.int32, bitcast=True)  # + 0.0 turns -0 into +0
        key = tl.where(similarity != similarity, NAN_KEY, bits ^ ((bits >> 31) & 0x7FFFFFFF))
        key = tl.where((prototype < count)[None, :], key, NO_KEY)
        tile_best = tl.max(key, 1)
        tile_argmax = tl.min(tl.where(key == tile_best[:, None], prototype[None, :], NAN_KEY), 1)
        argmax = tl.where(tile_best > best, tile_argmax, argmax)
        best = tl.maximum(best, tile_best)
    score = (best ^ ((best >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    score = tl.where(best == NAN_KEY, float("nan"), score)
    return finish_score(score, squares, COSINE, L2), argmax


@triton.jit(do_not_specialize=["token_batch", "token_stride", "token_group", "dim_stride", "n", "d", "groups",
                               "prototype_group", "prototype_stride", "prototype_dim_stride", "count", "rnorm_stride",
                               "score_batch", "score_token", "argmax_batch", "argmax_token", "tiles"])
def score_kernel(tokens, token_batch: tl.int64, token_stride: tl.int64, token_group: tl.int64, dim_stride: tl.int64,
                 n: tl.int64, d: tl.int32, groups: tl.int64, prototypes, prototype_group: tl.int64,
                 prototype_stride: tl.int64, prototype_dim_stride: tl.int64, count: tl.int32, prototype_rnorm,
                 rnorm_stride: tl.int64, scores, score_batch: tl.int64, score_token: tl.int64, argmax,
                 argmax_batch: tl.int64, argmax_token: tl.int64, tiles: tl.int64, COSINE: tl.constexpr,
                 L2: tl.constexpr, UPCAST: tl.constexpr, FAST: tl.constexpr, EVEN_D: tl.constexpr,
                 BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    batch = item // (tiles * groups)
    group = (item // tiles) % groups
    first = (item % tiles) * BLOCK_N
    score, nearest = score_tile(tokens + batch * token_batch + group * token_group, token_stride, dim_stride, first, n,
                                d, prototypes + group * prototype_group, prototype_stride, prototype_dim_stride, count,
                                prototype_rnorm, rnorm_stride, COSINE, UPCAST, FAST, EVEN_D, BLOCK_N, BLOCK_P, BLOCK_D,
                                L2)
    token = first + tl.arange(0, BLOCK_N)
    tl.store(scores + batch * score_batch + token * score_token + group, score, mask=token < n)
    tl.store(argmax + batch * argmax_batch + token * argmax_token + group, nearest, mask=token < n)


def score_options(tokens: Tensor, prototypes: Tensor, config: dict) -> dict[str, object]:
    """The constexprs of `score_tile` but COSINE and L2."""
    rows = tuple(s for t in (tokens, prototypes) for s in t.stride()[:-1])
    fast = _triton.aligned16(tokens, *rows) and _triton.aligned16(prototypes)
    # Without alignment each element has an address of its own, in registers: tiles must be small.
    block_d = config["block_d"] if fast else min(32, config["block_d"])
    return {"UPCAST": _triton.interpreted(), "FAST": fast, "EVEN_D": tokens.shape[-1] % block_d == 0,
            "BLOCK_N": config["block_n"], "BLOCK_P": config["block_p"], "BLOCK_D": block_d}


class Layout(NamedTuple):
    """A call as one with groups, tokens [B, N, G, d] and prototypes [G, P, d]: strides are 0 where it has none."""

    batch: int
    n: int
    groups: int
    d: int
    prototype_count: int
    tokens: tuple[int, ...]
    prototypes: tuple[int, ...]
    packed: bool

    def output(self, out: Tensor) -> tuple[int, ...]:
        """Batch and token strides of an output [B, N, ..] or [N, ..]."""
        return (0, out.stride(0)) if self.packed else out.stride()[:2]


def layout(tokens: Tensor, prototypes: Tensor) -> Layout:
    grouped = prototypes.dim() == 3
    packed = tokens.dim() == (3 if grouped else 2)
    lead, strides = list(tokens.shape), list(tokens.stride())
    if packed:
        lead, strides = [1, *lead], [0, *strides]
    if not grouped:
        lead, strides = [*lead[:2], 1, lead[2]], [*strides[:2], 0, strides[2]]
    batch, n, groups, d = lead
    of_prototypes = prototypes.stride() if grouped else (0, *prototypes.stride())
    return Layout(batch, n, groups, d, prototypes.shape[-2], tuple(strides), of_prototypes, packed)


def prototype_scores_out(tokens: Tensor, prototypes: Tensor, *, metric: str = "cosine",
                         prototype_rnorm: Tensor | None = None, scores: Tensor, argmax: Tensor) -> None:
    if scores.numel() == 0:
        return
    at = layout(tokens, prototypes)
    config = lookup.config("prototype_scores", _triton.device_name(tokens.device), tokens.dtype, n=at.batch * at.n,
                           d=at.d, p=at.prototype_count)
    tiles = triton.cdiv(at.n, config["block_n"])
    rnorm_stride = 0 if prototype_rnorm is None else prototype_rnorm.stride(0)
    _triton.launch(score_kernel, at.batch * at.groups * tiles, tokens.device, tokens, *at.tokens, at.n, at.d, at.groups,
                   prototypes, *at.prototypes, at.prototype_count, prototype_rnorm, rnorm_stride, scores,
                   *at.output(scores), argmax, *at.output(argmax), tiles, COSINE=metric == "cosine", L2=metric == "l2",
                   **score_options(tokens, prototypes, config), num_warps=config["num_warps"],
                   num_stages=config["num_stages"])
