"""The kernels of `attention_scores` on packed sequences, after a small kernel that makes their bounds safe."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ..._library import STATUS_BAD_SEQLENS
from ..attention_scores.triton import Attention

BAD_SEQLENS = tl.constexpr(STATUS_BAD_SEQLENS)
FILL_BLOCK = 1024
SEQUENCE_BLOCK = 128


@triton.jit
def _maximum(a, b):
    return tl.maximum(a, b)


@triton.jit
def clamp_bounds(cu_seqlens, stride, word, batch, tokens, longest, SEQUENCES: tl.constexpr):
    """Writes first element and length of each sequence to words `word` and `word + 1` of four. Returns status bits."""
    flags = tl.zeros((), tl.int32)
    if tl.load(cu_seqlens) != 0:
        flags |= BAD_SEQLENS
    last_bound = tl.zeros((), tl.int64)
    for start in range(0, batch, SEQUENCES):
        row = start + tl.arange(0, SEQUENCES).to(tl.int64)
        valid = row < batch
        given_begin = tl.load(cu_seqlens + row * stride, mask=valid, other=0).to(tl.int64)
        given_end = tl.load(cu_seqlens + (row + 1) * stride, mask=valid, other=0).to(tl.int64)
        # Bounds never decrease: the running maximum of what was given.
        begin = tl.associative_scan(tl.minimum(tl.maximum(given_begin, 0), tokens), 0, _maximum)
        begin = tl.maximum(begin, last_bound)
        end = tl.maximum(begin, tl.minimum(tl.maximum(given_end, 0), tokens))
        last_bound = tl.max(end, 0)
        bad = (begin != given_begin) | (end != given_end) | (end - begin > longest)
        if tl.sum((valid & bad).to(tl.int32), 0) > 0:
            flags |= BAD_SEQLENS
        tl.store(word + row * 4, begin, mask=valid)
        tl.store(word + row * 4 + 1, tl.minimum(end - begin, longest), mask=valid)
    return flags


@triton.jit(do_not_specialize=["q_stride", "k_stride", "batch", "total_q", "total_k", "longest_q", "longest_k", "rows",
                               "row_stride"])
def bounds_kernel(cu_seqlens_q, q_stride: tl.int64, cu_seqlens_k, k_stride: tl.int64, bounds, batch: tl.int64,
                  total_q: tl.int64, total_k: tl.int64, longest_q: tl.int64, longest_k: tl.int64, out, rows: tl.int64,
                  row_stride: tl.int64, status, SEQUENCES: tl.constexpr, BLOCK: tl.constexpr):
    """Program 0 writes the bounds; the others fill [rows, total_k], of which no sequence may cover all, with NaN."""
    if tl.program_id(0) > 0:
        place = (tl.program_id(0) - 1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(out + place // total_k * row_stride + place % total_k, float("nan"), mask=place < rows * total_k)
    else:
        flags = clamp_bounds(cu_seqlens_q, q_stride, bounds, batch, total_q, longest_q, SEQUENCES)
        flags |= clamp_bounds(cu_seqlens_k, k_stride, bounds + 2, batch, total_k, longest_k, SEQUENCES)
        if status is not None:  # noqa: SIM102 (decided at compile time)
            if flags != 0:
                tl.atomic_or(status, flags)


def attention_scores_varlen_out(query: Tensor, key: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, total_k: int,
                                max_seqlen_q: int, max_seqlen_k: int, *, block_table: Tensor | None = None,
                                lse: Tensor | None = None, row_weights: Tensor | None = None,
                                scale: float | None = None, causal: bool = False, reduce_rows: str = "mean",
                                reduce_heads: str = "mean", logits: bool = False, kv_layout: str = "NHD", out: Tensor,
                                status: Tensor | None = None, _parts: int | None = None) -> None:
    """`_parts` as in `attention_scores_out`."""
    if kv_layout == "HND":  # [Tk, Hkv, d], or [blocks, block_size, Hkv, d]
        key = key.transpose(-3, -2)
    total_q, heads, _ = query.shape
    batch = cu_seqlens_q.shape[0] - 1
    rows, keys = min(max_seqlen_q, total_q), min(max_seqlen_k, total_k)
    bounds = torch.empty(batch, 4, dtype=torch.int64, device=query.device)
    query_strides = (0, query.stride(1), query.stride(0), query.stride(2))
    paged = block_table is not None
    token, head, dim = key.stride()[-3:]
    attention = Attention(
        "attention_scores_varlen", query, query_strides, key, (key.stride(0) if paged else 0, head, token, dim), batch,
        heads, key.shape[-2], rows, keys, total_q, lse, row_weights, scale, causal, 0, 0, keys, reduce_rows,
        reduce_heads, logits, out, _parts, bounds, block_table, key.shape[1] if paged else 1, status)
    empty = batch * keys == 0
    filled = out if attention.partial is None or empty else attention.partial[0]
    fill_rows, fill_stride = (1, 0) if filled.dim() == 1 else (filled.shape[0], filled.stride(0))
    _triton.launch(bounds_kernel, 1 + triton.cdiv(fill_rows * total_k, FILL_BLOCK), query.device, cu_seqlens_q,
                   cu_seqlens_q.stride(0), cu_seqlens_k, cu_seqlens_k.stride(0), bounds, batch, total_q, total_k,
                   max_seqlen_q, max_seqlen_k, filled, fill_rows, fill_stride, status, SEQUENCES=SEQUENCE_BLOCK,
                   BLOCK=FILL_BLOCK, num_warps=4)
    if not empty:
        attention.launch()
