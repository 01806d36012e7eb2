"""The kernels of `prune_topk` on packed sequences, after a small kernel that makes the metadata safe."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ..._checks import kv_token_dim
from ..._library import STATUS_BAD_SEQLENS, STATUS_BAD_SPAN, STATUS_TRUNCATED
from ...compact.gather_tokens.triton import moves
from ...score.prototype_scores.triton import score_options
from ...tuning import lookup
from ..prune_topk.triton import (
    BEGIN,
    COUNT,
    END,
    LENGTH,
    OUT,
    ROW_WORDS,
    ROWS,
    SPAN,
    TILE,
    TILES,
    prune,
    select_options,
    zeroed_workspace,
)

BAD_SEQLENS = tl.constexpr(STATUS_BAD_SEQLENS)
BAD_SPAN = tl.constexpr(STATUS_BAD_SPAN)
TRUNCATED = tl.constexpr(STATUS_TRUNCATED)
PREPARE_BLOCK = 1024
SEQUENCE_BLOCK = 128


@triton.jit
def _maximum(a, b):
    return tl.maximum(a, b)


@triton.jit(do_not_specialize=["cu_stride", "k_stride", "starts_stride", "lens_stride", "batch", "tokens", "total_out"])
def prepare_kernel(cu_seqlens, cu_stride: tl.int64, k, k_stride: tl.int64, span_starts, starts_stride: tl.int64,
                   span_lens, lens_stride: tl.int64, cu_out, indices, scores, batch: tl.int64, tokens: tl.int64,
                   total_out: tl.int64, workspace, status, BLOCK_N: tl.constexpr, SEQUENCES: tl.constexpr,
                   BLOCK: tl.constexpr):
    """Program 0 clamps the metadata and lays out the sequences; the others fill what no sequence may cover."""
    if tl.program_id(0) > 0:
        place = (tl.program_id(0) - 1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(scores + place, float("nan"), mask=place < tokens)
        tl.store(indices + place, -1, mask=place < total_out)
    else:
        flags = tl.zeros((), tl.int32)
        if tl.load(cu_seqlens) != 0:
            flags |= BAD_SEQLENS
        last_bound = tl.zeros((), tl.int64)
        out_total = tl.zeros((), tl.int64)
        tile_total = tl.zeros((), tl.int64)
        tl.store(cu_out, 0)
        for start in range(0, batch, SEQUENCES):
            row = start + tl.arange(0, SEQUENCES).to(tl.int64)
            valid = row < batch
            given_begin = tl.load(cu_seqlens + row * cu_stride, mask=valid, other=0).to(tl.int64)
            given_end = tl.load(cu_seqlens + (row + 1) * cu_stride, mask=valid, other=0).to(tl.int64)
            # Bounds never decrease: the running maximum of what was given.
            begin = tl.associative_scan(tl.minimum(tl.maximum(given_begin, 0), tokens), 0, _maximum)
            begin = tl.maximum(begin, last_bound)
            end = tl.maximum(begin, tl.minimum(tl.maximum(given_end, 0), tokens))
            last_bound = tl.max(end, 0)
            if tl.sum((valid & ((begin != given_begin) | (end != given_end))).to(tl.int32), 0) > 0:
                flags |= BAD_SEQLENS

            if span_starts is not None:
                asked_start = tl.load(span_starts + row * starts_stride, mask=valid, other=0).to(tl.int64)
                asked_length = tl.load(span_lens + row * lens_stride, mask=valid, other=0).to(tl.int64)
            else:
                asked_start = tl.zeros((SEQUENCES,), tl.int64)
                asked_length = end - begin
            asked_count = tl.load(k + row * k_stride, mask=valid, other=0).to(tl.int64)
            span = tl.minimum(tl.maximum(asked_start, 0), end - begin)
            length = tl.minimum(tl.maximum(asked_length, 0), end - begin - span)
            count = tl.minimum(tl.maximum(asked_count, 0), length)
            clamped = (span != asked_start) | (length != asked_length) | (count != asked_count)
            if tl.sum((valid & clamped).to(tl.int32), 0) > 0:
                flags |= BAD_SPAN

            kept = tl.where(valid, end - begin - length + count, 0)
            out_end = out_total + tl.cumsum(kept, 0)
            tiles = tl.where(valid, tl.maximum((length + (BLOCK_N - 1)) // BLOCK_N, 1), 0)
            tile_end = tile_total + tl.cumsum(tiles, 0)
            words = workspace + ROWS + row * ROW_WORDS
            tl.store(words + END, end, mask=valid)
            tl.store(words + BEGIN, begin, mask=valid)
            tl.store(words + SPAN, begin + span, mask=valid)
            tl.store(words + LENGTH, length, mask=valid)
            tl.store(words + COUNT, count, mask=valid)
            tl.store(words + OUT, tl.minimum(out_end - kept, total_out), mask=valid)
            tl.store(words + TILE, tile_end - tiles, mask=valid)
            tl.store(cu_out + row + 1, tl.minimum(out_end, total_out), mask=valid)
            out_total += tl.sum(kept, 0)
            tile_total += tl.sum(tiles, 0)
        tl.store(workspace + TILES, tile_total)
        if out_total > total_out:
            flags |= TRUNCATED
        if status is not None:  # noqa: SIM102 (decided at compile time)
            if flags != 0:
                tl.atomic_or(status, flags)


def prune_topk_varlen_out(hidden: Tensor, prototypes: Tensor, cu_seqlens: Tensor, k: Tensor, total_out: int,
                          kv: Sequence[Tensor] | None = None, *, keep_similar: bool = False,
                          span_starts: Tensor | None = None, span_lens: Tensor | None = None,
                          prototype_rnorm: Tensor | None = None, kv_layout: str = "HND", out_hidden: Tensor,
                          out_kv: Sequence[Tensor], out_indices: Tensor, out_scores: Tensor, out_cu_seqlens: Tensor,
                          workspace: Tensor | None = None, status: Tensor | None = None,
                          _path: str | None = None) -> None:
    """`_path` is for tests and benchmarks: `"one_launch"` or `"two_launch"` in place of the table's choice."""
    tokens, d = hidden.shape
    batch = k.shape[0]
    config = lookup.config("prune_topk_varlen", _triton.device_name(hidden.device), hidden.dtype, n=tokens, d=d,
                           p=prototypes.shape[0], tensors=1 + len(out_kv))
    if workspace is None:
        workspace = zeroed_workspace(batch, hidden)
    starts_stride, lens_stride = (0 if t is None else t.stride(0) for t in (span_starts, span_lens))
    _triton.launch(prepare_kernel, 1 + triton.cdiv(max(tokens, total_out), PREPARE_BLOCK), hidden.device, cu_seqlens,
                   cu_seqlens.stride(0), k, k.stride(0), span_starts, starts_stride, span_lens, lens_stride,
                   out_cu_seqlens, out_indices, out_scores, batch, tokens, total_out, workspace, status,
                   BLOCK_N=config["block_n"], SEQUENCES=SEQUENCE_BLOCK, BLOCK=PREPARE_BLOCK, num_warps=4)
    token_dim = kv_token_dim("prune_topk_varlen", kv_layout, packed=True)
    all_moves = moves(hidden, out_hidden, None, 0)
    for cache, out in zip(kv or (), out_kv, strict=True):
        all_moves += moves(cache, out, None, token_dim)
    # At most one tile of each sequence is not full. What the sequences really need, the kernel reads.
    score_items = triton.cdiv(tokens, config["block_n"]) + batch if batch else 0
    score_args = (hidden, 0, *hidden.stride(), d, prototypes, *prototypes.stride(), prototypes.shape[0],
                  prototype_rnorm, 0 if prototype_rnorm is None else prototype_rnorm.stride(0), out_scores, 0,
                  out_indices, 0, tokens, total_out, 0, None, 0, 0, 0, 0, batch, workspace, None)
    options = {"VARLEN": True, **score_options(hidden, prototypes, config),
               **select_options(tokens, keep_similar, config)}
    prune(score_args, options, (out_indices, 0, 1, tokens, total_out), all_moves, 1, score_items,
          workspace, config, _path)
