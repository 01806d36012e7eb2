"""A tile of tokens against all prototypes, with the best of them in registers as a list of packed keys."""

import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup
from ..prototype_scores.triton import aligned_stride, finish_score, layout, score_options, similarity_tile, token_tile

NAN_RANK = tl.constexpr(-(2**31))  # under the key of -inf
NONE = tl.constexpr(-(2**63))      # under every packed key
ANY = tl.constexpr(2**63 - 1)
LIST = 32                          # the most prototypes that one pass selects


@triton.jit(do_not_specialize=["token_batch", "token_stride", "token_group", "dim_stride", "n", "d", "groups",
                               "prototype_group", "prototype_stride", "prototype_dim_stride", "count", "rnorm_stride",
                               "m", "score_batch", "score_token", "index_batch", "index_token", "score_group",
                               "index_group", "tiles"])
def topm_kernel(tokens, token_batch: tl.int64, token_stride: tl.int64, token_group: tl.int64, dim_stride: tl.int64,
                n: tl.int64, d: tl.int32, groups: tl.int64, prototypes, prototype_group: tl.int64,
                prototype_stride: tl.int64, prototype_dim_stride: tl.int64, count: tl.int32, prototype_rnorm,
                rnorm_stride: tl.int64, m: tl.int32, scores, score_batch: tl.int64, score_token: tl.int64,
                score_group: tl.int64, indices, index_batch: tl.int64, index_token: tl.int64, index_group: tl.int64,
                tiles: tl.int64, COSINE: tl.constexpr, L2: tl.constexpr, UPCAST: tl.constexpr, FAST: tl.constexpr,
                EVEN_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
                BLOCK_M: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    batch = item // (tiles * groups)
    group = (item // tiles) % groups
    first = (item % tiles) * BLOCK_N
    token_rows, is_token = token_tile(tokens + batch * token_batch + group * token_group, token_stride, first, n, FAST,
                                      BLOCK_N)
    prototypes += group * prototype_group
    prototype_stride = aligned_stride(prototypes, prototype_stride, FAST)
    token = first + tl.arange(0, BLOCK_N)
    scores += batch * score_batch + token * score_token + group * score_group
    indices += batch * index_batch + token * index_token + group * index_group
    slot = tl.arange(0, BLOCK_M)
    bound = tl.full((BLOCK_N,), ANY, tl.int64)
    for done in range(0, m, BLOCK_M):  # each pass selects the next ones
        wanted = tl.minimum(m - done, BLOCK_M)
        best = tl.full((BLOCK_N, BLOCK_M), NONE, tl.int64)
        squares = tl.zeros((BLOCK_N,), tl.float32)
        for start in range(0, count, BLOCK_P):
            prototype = start + tl.arange(0, BLOCK_P)
            similarity, squares = similarity_tile(
                token_rows, is_token, dim_stride, d, prototypes, prototype_stride, prototype_dim_stride, start, count,
                prototype_rnorm, rnorm_stride, COSINE, L2, UPCAST, FAST, EVEN_D, BLOCK_N, BLOCK_P, BLOCK_D)
            bits = (similarity + 0.0).to(tl.int32, bitcast=True)  # + 0.0 turns -0 into +0
            key = tl.where(similarity != similarity, NAN_RANK, bits ^ ((bits >> 31) & 0x7FFFFFFF))
            packed = (key.to(tl.int64) << 32) | (0x7FFFFFFF - prototype).to(tl.int64)[None, :]
            packed = tl.where((prototype < count)[None, :] & (packed < bound[:, None]), packed, NONE)
            merged = tl.full((BLOCK_N, BLOCK_M), NONE, tl.int64)
            for i in range(0, wanted):
                highest = tl.maximum(tl.max(best, 1), tl.max(packed, 1))[:, None]
                merged = tl.where((slot == i)[None, :], highest, merged)
                best = tl.where(best == highest, NONE, best)
                packed = tl.where(packed == highest, NONE, packed)
            best = merged
        key = (best >> 32).to(tl.int32)
        similarity = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        similarity = tl.where(key == NAN_RANK, float("nan"), similarity)
        nearest = 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32)
        at = (done + slot)[None, :]
        mask = (token < n)[:, None] & (slot < wanted)[None, :]
        tl.store(scores[:, None] + at, finish_score(similarity, squares[:, None], COSINE, L2), mask=mask)
        tl.store(indices[:, None] + at, nearest, mask=mask)
        bound = tl.min(tl.where((slot < wanted)[None, :], best, ANY), 1)


def prototype_topm_out(tokens: Tensor, prototypes: Tensor, m: int, *, metric: str = "cosine",
                       prototype_rnorm: Tensor | None = None, scores: Tensor, indices: Tensor) -> None:
    if scores.numel() == 0:
        return
    at = layout(tokens, prototypes)
    config = lookup.config("prototype_topm", _triton.device_name(tokens.device), tokens.dtype, n=at.batch * at.n,
                           d=at.d, p=at.prototype_count)
    tiles = triton.cdiv(at.n, config["block_n"])
    rnorm_stride = 0 if prototype_rnorm is None else prototype_rnorm.stride(0)
    _triton.launch(topm_kernel, at.batch * at.groups * tiles, tokens.device, tokens, *at.tokens, at.n, at.d, at.groups,
                   prototypes, *at.prototypes, at.prototype_count, prototype_rnorm, rnorm_stride, m, scores,
                   *at.output(scores), scores.stride(-2), indices, *at.output(indices), indices.stride(-2), tiles,
                   COSINE=metric == "cosine", L2=metric == "l2", **score_options(tokens, prototypes, config),
                   BLOCK_M=min(LIST, _triton.pow2_at_least(m)), num_warps=config["num_warps"],
                   num_stages=config["num_stages"])
