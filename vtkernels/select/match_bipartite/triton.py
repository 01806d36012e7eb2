"""A tile of sources against all targets of its row, the selection of the best scores, and the lists of the result."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...score.prototype_scores.triton import score_options, score_tile
from ...tuning import lookup
from ..select_topk.triton import select_topk_out


@triton.jit
def source_position(number, stride, protected):
    """Where source `number` lies: sources are the tokens from `protected` on that are no targets."""
    number += protected - protected // stride
    return number // (stride - 1) * stride + number % (stride - 1)


@triton.jit(do_not_specialize=["token_batch", "token_stride", "dim_stride", "n", "d", "stride", "protected", "tiles",
                               "bias_batch", "bias_token", "sources"])
def match_kernel(tokens, token_batch: tl.int64, token_stride: tl.int64, dim_stride: tl.int64, n: tl.int64, d: tl.int32,
                 stride: tl.int64, protected: tl.int64, bias, bias_batch: tl.int64, bias_token: tl.int64,
                 tiles: tl.int64, sources: tl.int64, scores, argmax, UPCAST: tl.constexpr, FAST: tl.constexpr,
                 EVEN_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
    """Best target of a tile of sources that lie `stride` apart."""
    item = tl.program_id(0).to(tl.int64)
    batch = item // (tiles * (stride - 1))
    phase = item // tiles % (stride - 1)  # of the sources within a group of `stride` tokens
    first = item % tiles * BLOCK_N
    tokens += batch * token_batch
    group = (protected - phase + stride - 1) // stride  # the first one whose source is not protected
    start = group * stride + phase
    count = (n - start + stride - 1) // stride
    target = protected // stride * stride + stride - 1
    target_count = n // stride - protected // stride
    score, nearest = score_tile(tokens + start * token_stride, stride * token_stride, dim_stride, first, count, d,
                                tokens + target * token_stride, stride * token_stride, dim_stride,
                                target_count.to(tl.int32), None, 0, True, UPCAST, FAST, EVEN_D, BLOCK_N, BLOCK_P,
                                BLOCK_D)
    row = first + tl.arange(0, BLOCK_N)
    position = start + row * stride
    number = position - position // stride - (protected - protected // stride)
    is_source = row < count
    if bias is not None:
        score += tl.load(bias + batch * bias_batch + position * bias_token, mask=is_source, other=0.0)
        score += 0.0
    tl.store(scores + batch * sources + number, score, mask=is_source)
    tl.store(argmax + batch * sources + number, target + nearest.to(tl.int64) * stride, mask=is_source)


@triton.jit(do_not_specialize=["n", "r", "stride", "protected", "sources", "source_batch", "target_batch",
                               "score_batch", "kept_batch"])
def list_kernel(picked, scores, argmax, n: tl.int64, r: tl.int64, stride: tl.int64, protected: tl.int64,
                sources: tl.int64, out_sources, source_batch: tl.int64, out_targets, target_batch: tl.int64, out_scores,
                score_batch: tl.int64, out_kept, kept_batch: tl.int64, BLOCK: tl.constexpr):
    """Each token into the list of the sources or into that of the others, at its rank there."""
    item = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(n, BLOCK)
    batch = item // blocks
    place = item % blocks * BLOCK + tl.arange(0, BLOCK)
    picked += batch * r
    low = tl.zeros((BLOCK,), tl.int64)  # becomes the number of picked sources before the token
    high = low + r
    left = r
    while left > 0:
        middle = (low + high) // 2
        number = tl.load(picked + middle, mask=low < high, other=0)
        before = (low < high) & (source_position(number, stride, protected) < place)
        high = tl.where(before | (low >= high), high, middle)
        low = tl.where(before, middle + 1, low)
        left = left // 2
    number = tl.load(picked + low, mask=low < r, other=0)
    merged = (low < r) & (source_position(number, stride, protected) == place) & (place < n)
    tl.store(out_sources + batch * source_batch + low, place, mask=merged)
    target = tl.load(argmax + batch * sources + number, mask=merged, other=0)
    tl.store(out_targets + batch * target_batch + low, target, mask=merged)
    score = tl.load(scores + batch * sources + number, mask=merged, other=0.0)
    tl.store(out_scores + batch * score_batch + low, score, mask=merged)
    tl.store(out_kept + batch * kept_batch + place - low, place, mask=(place < n) & (merged == 0))


def match_bipartite_out(tokens: Tensor, r: int, *, stride: int = 2, protected: int = 0,
                        source_bias: Tensor | None = None, out_sources: Tensor, out_targets: Tensor,
                        out_scores: Tensor, out_kept: Tensor) -> None:
    batch, n, d = tokens.shape
    if batch == 0 or n == 0:
        return
    device = tokens.device
    sources = n - protected - (n // stride - protected // stride)
    config = lookup.config("match_bipartite", _triton.device_name(device), tokens.dtype, n=n, d=d)
    options = {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}
    scores = torch.empty(batch, sources, dtype=torch.float32, device=device)
    argmax = torch.empty(batch, sources, dtype=torch.int64, device=device)
    picked = torch.empty(batch, r, dtype=torch.int64, device=device)
    if r > 0:
        tiles = triton.cdiv(triton.cdiv(n, stride), config["block_n"])
        bias_strides = (0, 0) if source_bias is None else source_bias.stride()
        _triton.launch(match_kernel, batch * (stride - 1) * tiles, device, tokens, *tokens.stride(), n, d, stride,
                       protected, source_bias, *bias_strides, tiles, sources, scores, argmax,
                       **score_options(tokens, tokens, config), **options)
        select_topk_out(scores, r, out=picked)
    block = config["select_block"]
    _triton.launch(list_kernel, batch * triton.cdiv(n, block), device, picked, scores, argmax, n, r, stride, protected,
                   sources, out_sources, out_sources.stride(0), out_targets, out_targets.stride(0), out_scores,
                   out_scores.stride(0), out_kept, out_kept.stride(0), BLOCK=block, **options)
