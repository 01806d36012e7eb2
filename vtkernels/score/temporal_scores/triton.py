"""A program walks a chunk of frames at a few places, with the previous frame's tokens in registers."""

import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup
from ..prototype_scores.triton import reciprocal_norm
from .reference import FIRST

METRICS = ("cosine", "l1", "l2")
COSINE, L1 = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def load_tile(rows, dim_stride, block, d, is_row, FAST: tl.constexpr, EVEN_D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Elements [block, block + BLOCK_D) of rows of d, as float32, zeros where there are none."""
    dim = block + tl.arange(0, BLOCK_D)
    mask = is_row[:, None]
    if not EVEN_D:
        mask = mask & (dim < d)[None, :]
    if FAST:
        x = tl.load(rows + dim[None, :], mask=mask, other=0.0)
    else:
        x = tl.load(rows + dim.to(tl.int64)[None, :] * dim_stride, mask=mask, other=0.0)
    return x.to(tl.float32)


@triton.jit
def compare(x, y, METRIC: tl.constexpr):
    if METRIC == COSINE:
        return tl.sum(x * y, 1)
    if METRIC == L1:
        return tl.sum(tl.abs(x - y), 1)
    return tl.sum((x - y) * (x - y), 1)


@triton.jit(do_not_specialize=["batch_stride", "frame_stride", "token_stride", "dim_stride", "frames", "n", "d",
                               "out_batch", "out_frame", "tiles", "chunks", "first"])
def temporal_kernel(tokens, batch_stride: tl.int64, frame_stride: tl.int64, token_stride: tl.int64,
                    dim_stride: tl.int64, frames: tl.int64, n: tl.int64, d: tl.int32, out, out_batch: tl.int64,
                    out_frame: tl.int64, tiles: tl.int64, chunks: tl.int64, first: tl.float32, METRIC: tl.constexpr,
                    HELD: tl.constexpr, FAST: tl.constexpr, EVEN_D: tl.constexpr, FRAMES: tl.constexpr,
                    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    batch = item // (tiles * chunks)
    begin = (item // tiles) % chunks * FRAMES
    place = (item % tiles) * BLOCK_N
    row = tl.arange(0, BLOCK_N).to(tl.int64)
    is_row = row < n - place
    tokens += batch * batch_stride + place * token_stride
    out += batch * out_batch + place
    if FAST:  # rows contiguous and on 16-byte boundaries; hints on the results of operations survive inlining
        WIDE: tl.constexpr = 128 // tokens.dtype.element_ty.primitive_bitwidth
        tokens = tl.multiple_of(tokens, 16)
        token_stride = token_stride // WIDE * WIDE
        frame_stride = frame_stride // WIDE * WIDE
    rows = tokens + row[:, None] * token_stride
    if begin == 0:
        tl.store(out + row, tl.zeros((BLOCK_N,), tl.float32) + first, mask=is_row)
    start = tl.maximum(begin, 1)
    held = load_tile(rows + (start - 1) * frame_stride, dim_stride, 0, d, is_row, FAST, EVEN_D, BLOCK_D)
    held_squares = tl.sum(held * held, 1)
    for frame in range(start, tl.minimum(begin + FRAMES, frames)):
        now = rows + frame * frame_stride
        if HELD:  # a row fits the block
            x = load_tile(now, dim_stride, 0, d, is_row, FAST, EVEN_D, BLOCK_D)
            score = compare(x, held, METRIC)
            if METRIC == COSINE:
                squares = tl.sum(x * x, 1)
                score = score * reciprocal_norm(held_squares) * reciprocal_norm(squares)
                held_squares = squares
            held = x
        else:
            score = tl.zeros((BLOCK_N,), tl.float32)
            squares = tl.zeros((BLOCK_N,), tl.float32)
            before = tl.zeros((BLOCK_N,), tl.float32)
            for block in range(0, d, BLOCK_D):
                x = load_tile(now, dim_stride, block, d, is_row, FAST, EVEN_D, BLOCK_D)
                y = load_tile(now - frame_stride, dim_stride, block, d, is_row, FAST, EVEN_D, BLOCK_D)
                score += compare(x, y, METRIC)
                if METRIC == COSINE:
                    squares += tl.sum(x * x, 1)
                    before += tl.sum(y * y, 1)
            if METRIC == COSINE:
                score = score * reciprocal_norm(before) * reciprocal_norm(squares)
        if METRIC > L1:
            score = tl.sqrt(score)
        tl.store(out + frame * out_frame + row, score + 0.0, mask=is_row)  # + 0.0 turns -0 into +0


def temporal_scores_out(tokens: Tensor, *, metric: str = "cosine", first: float | None = None, out: Tensor) -> None:
    if out.numel() == 0:
        return
    batch, frames, n, d = tokens.shape
    config = lookup.config("temporal_scores", _triton.device_name(tokens.device), tokens.dtype, n=n, d=d)
    block_d = min(config["block_d"], _triton.pow2_at_least(max(d, 16)))
    block_n = max(1, config["block_d"] // block_d)
    tiles, chunks = triton.cdiv(n, block_n), triton.cdiv(frames, config["frames"])
    _triton.launch(temporal_kernel, batch * chunks * tiles, tokens.device, tokens, *tokens.stride(), frames, n, d, out,
                   out.stride(0), out.stride(1), tiles, chunks, FIRST[metric] if first is None else float(first),
                   METRIC=METRICS.index(metric), HELD=d <= block_d,
                   FAST=_triton.aligned16(tokens, *tokens.stride()[:-1]), EVEN_D=d > 0 and d % block_d == 0,
                   FRAMES=config["frames"], BLOCK_N=block_n, BLOCK_D=block_d, num_warps=config["num_warps"],
                   num_stages=config["num_stages"])
