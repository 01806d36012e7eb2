"""Contracts of the ops that score tokens."""

from typing import Any

import torch
from torch import Tensor

from .. import _checks as check
from .spec import Spec

METRICS = ("cosine", "dot", "l2")
TEMPORAL_METRICS = ("cosine", "l1", "l2")
ROW_REDUCTIONS = ("mean", "sum", "max")
HEAD_REDUCTIONS = ("mean", "sum", "max", "none")


def prototype_scores(tokens: Tensor, prototypes: Tensor, *, metric: str = "cosine",
                     prototype_rnorm: Tensor | None = None) -> tuple[Spec, Spec]:
    _check_prototypes("prototype_scores", tokens, prototypes, metric, prototype_rnorm)
    shape = tuple(tokens.shape[:-1])
    return Spec(shape, torch.float32, tokens.device), Spec(shape, torch.int64, tokens.device)


def prototype_topm(tokens: Tensor, prototypes: Tensor, m: int, *, metric: str = "cosine",
                   prototype_rnorm: Tensor | None = None) -> tuple[Spec, Spec]:
    op = "prototype_topm"
    _check_prototypes(op, tokens, prototypes, metric, prototype_rnorm)
    check.in_range(op, "m", m, 1, prototypes.shape[-2], "there are P prototypes")
    shape = (*tokens.shape[:-1], m)
    return Spec(shape, torch.float32, tokens.device), Spec(shape, torch.int64, tokens.device)


def prototype_softmax_scores(tokens: Tensor, prototypes: Tensor, *, over_tokens: bool = False,
                             prototype_rnorm: Tensor | None = None) -> Spec:
    op = "prototype_softmax_scores"
    check.floating(op, "tokens", tokens)
    check.rank(op, "tokens", tokens, "B, N, D")
    check.prototypes(op, prototypes, prototype_rnorm, tokens, "tokens")
    return Spec(tuple(tokens.shape[:-1]), torch.float32, tokens.device)


def _check_prototypes(op: str, tokens: Tensor, prototypes: Tensor, metric: str, rnorm: Tensor | None) -> None:
    """Tokens [B, N, D] or [T, D] with prototypes [P, D]; or in G groups [B, N, G, D] or [T, G, D] with [G, P, D]."""
    check.floating(op, "tokens", tokens)
    check.dense(op, "prototypes", prototypes)
    grouped = prototypes.dim() == 3
    if tokens.dim() not in ((3, 4) if grouped else (2, 3)):
        check.fail(ValueError, op, "tokens", f"a {tokens.dim()}-D tensor of shape {check.shape(tokens)}",
                   "[B, N, G, D] or [T, G, D] with grouped prototypes" if grouped else "[B, N, D] or [T, D]")
    check.choice(op, "metric", metric, METRICS)
    if metric != "cosine" and rnorm is not None:
        check.fail(ValueError, op, "prototype_rnorm", "given", f"None with metric={metric!r}")
    if grouped:
        check.size(op, "prototypes", prototypes.shape[0], tokens.shape[-2], "G (that of `tokens`)")
        if rnorm is not None:
            check.fail(ValueError, op, "prototype_rnorm", "given", "None with grouped prototypes")
    check.prototypes(op, prototypes, rnorm, tokens, "tokens", grouped)


def attention_scores(query: Tensor, key: Tensor, *, lse: Tensor | None = None, row_weights: Tensor | None = None,
                     scale: float | None = None, causal: bool = False, causal_offset: int | None = None,
                     key_start: int = 0, key_len: int = -1, reduce_rows: str = "mean", reduce_heads: str = "mean",
                     logits: bool = False, layout: str = "HND") -> Spec:
    op = "attention_scores"
    _check_attention(op, query, key, reduce_rows, reduce_heads, logits, lse)
    check.choice(op, "layout", layout, check.KV_LAYOUTS)
    token, head = (2, 1) if layout == "HND" else (1, 2)
    check.rank(op, "query", query, "B, Hq, Tq, d" if layout == "HND" else "B, Tq, Hq, d")
    check.rank(op, "key", key, "B, Hkv, S, d" if layout == "HND" else "B, S, Hkv, d")
    check.size(op, "key", key.shape[0], query.shape[0], "B")
    _check_heads(op, query.shape[head], key.shape[head])
    batch, rows, keys = query.shape[0], query.shape[token], key.shape[token]
    if causal_offset is not None and not causal:
        check.fail(ValueError, op, "causal_offset", causal_offset, "None without causal=True")
    length = check.span(op, keys, key_start, key_len, None, batch, query, ("key_start", "key_len"))
    _check_float_matrix(op, "lse", lse, (batch, query.shape[head], rows), "[B, Hq, Tq]", query)
    _check_float_matrix(op, "row_weights", row_weights, (batch, rows), "[B, Tq]", query)
    shape = (batch, query.shape[head], length) if reduce_heads == "none" else (batch, length)
    return Spec(shape, torch.float32, query.device)


def attention_scores_varlen(query: Tensor, key: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
                            total_k: int, max_seqlen_q: int, max_seqlen_k: int, *,
                            block_table: Tensor | None = None, lse: Tensor | None = None,
                            row_weights: Tensor | None = None, scale: float | None = None, causal: bool = False,
                            reduce_rows: str = "mean", reduce_heads: str = "mean", logits: bool = False,
                            kv_layout: str = "NHD") -> Spec:
    op = "attention_scores_varlen"
    _check_attention(op, query, key, reduce_rows, reduce_heads, logits, lse)
    check.choice(op, "kv_layout", kv_layout, check.KV_LAYOUTS)
    check.rank(op, "query", query, "Tq, Hq, d")
    check.dense(op, "cu_seqlens_q", cu_seqlens_q)
    check.rank(op, "cu_seqlens_q", cu_seqlens_q, "B + 1")
    batch = cu_seqlens_q.shape[0] - 1
    check.in_range(op, "cu_seqlens_q", cu_seqlens_q.shape[0], 1, 2**31 - 1, "its length, B + 1")
    check.vector(op, "cu_seqlens_q", cu_seqlens_q, batch + 1, (torch.int32,), query, "B + 1")
    check.vector(op, "cu_seqlens_k", cu_seqlens_k, batch + 1, (torch.int32,), query, "B + 1")
    if block_table is None:
        check.rank(op, "key", key, "Hkv, Tk, d" if kv_layout == "HND" else "Tk, Hkv, d")
        head = 0 if kv_layout == "HND" else 1
        check.size(op, "total_k", total_k, key.shape[1 - head], "Tk (the packed keys)")
    else:
        check.rank(op, "key", key, "blocks, Hkv, block_size, d" if kv_layout == "HND" else
                   "blocks, block_size, Hkv, d")
        head = 1 if kv_layout == "HND" else 2
        check.in_range(op, "key", key.shape[3 - head], 1, 2**31 - 1, "block_size")
        check.dense(op, "block_table", block_table)
        if block_table.dtype != torch.int32:
            check.fail(TypeError, op, "block_table", f"a tensor of {check.names([block_table.dtype])}", "int32")
        check.rank(op, "block_table", block_table, "B, max_blocks")
        check.size(op, "block_table", block_table.shape[0], batch, "B")
        check.same_device(op, "block_table", block_table, "query", query)
        check.in_range(op, "total_k", total_k, 0, 2**31 - 1, "keys of all sequences")
    check.in_range(op, "max_seqlen_q", max_seqlen_q, 0, 2**31 - 1, "query rows of the longest sequence")
    check.in_range(op, "max_seqlen_k", max_seqlen_k, 0, 2**31 - 1, "keys of the longest sequence")
    heads = query.shape[1]
    _check_heads(op, heads, key.shape[head])
    _check_float_matrix(op, "lse", lse, (heads, query.shape[0]), "[Hq, Tq]", query)
    _check_float_matrix(op, "row_weights", row_weights, (query.shape[0],), "[Tq]", query)
    return Spec((heads, total_k) if reduce_heads == "none" else (total_k,), torch.float32, query.device)


def _check_attention(op: str, query: Tensor, key: Tensor, reduce_rows: str, reduce_heads: str, logits: bool,
                     lse: Tensor | None) -> None:
    check.floating(op, "query", query)
    check.floating(op, "key", key)
    if key.dtype != query.dtype:
        check.fail(TypeError, op, "key", f"a tensor of {check.names([key.dtype])}",
                   f"the dtype of `query` ({check.names([query.dtype])})")
    check.same_device(op, "key", key, "query", query)
    width = query.shape[-1] if query.dim() else 0
    check.in_range(op, "query", width, 1, 2**31 - 1, "d, its last dimension")
    check.size(op, "key", key.shape[-1] if key.dim() else 0, width, "d")
    check.choice(op, "reduce_rows", reduce_rows, ROW_REDUCTIONS)
    check.choice(op, "reduce_heads", reduce_heads, HEAD_REDUCTIONS)
    if logits and lse is not None:
        check.fail(ValueError, op, "lse", "given", "None with logits=True")


def _check_heads(op: str, query_heads: Any, key_heads: Any) -> None:
    check.in_range(op, "key", key_heads, 1, 2**31 - 1, "its heads")
    if query_heads < 1 or query_heads % key_heads != 0:
        check.fail(ValueError, op, "query", f"of {query_heads} heads", f"a multiple of the {key_heads} heads of `key`")


def _check_float_matrix(op: str, arg: str, t: Tensor | None, shape: tuple, dims: str, ref: Tensor) -> None:
    if t is None:
        return
    check.dense(op, arg, t)
    if t.dtype != torch.float32:
        check.fail(TypeError, op, arg, f"a tensor of {check.names([t.dtype])}", "float32")
    if tuple(t.shape) != shape:
        check.fail(ValueError, op, arg, f"of shape {check.shape(t)}", f"{dims}, here {shape}")
    check.same_device(op, arg, t, "query", ref)


def temporal_scores(tokens: Tensor, *, metric: str = "cosine", first: float | None = None) -> Spec:
    op = "temporal_scores"
    check.floating(op, "tokens", tokens)
    check.rank(op, "tokens", tokens, "B, F, N, D")
    check.choice(op, "metric", metric, TEMPORAL_METRICS)
    return Spec(tuple(tokens.shape[:-1]), torch.float32, tokens.device)


def row_statistics(rows: Tensor) -> tuple[Spec, Spec, Spec]:
    op = "row_statistics"
    check.floating(op, "rows", rows)
    if rows.dim() < 1:
        check.fail(ValueError, op, "rows", "a 0-D tensor", "[.., D]")
    spec = Spec(tuple(rows.shape[:-1]), torch.float32, rows.device)
    return spec, spec, spec


def subspace_residual(tokens: Tensor, basis: Tensor) -> Spec:
    op = "subspace_residual"
    check.floating(op, "tokens", tokens)
    check.floating(op, "basis", basis)
    check.rank(op, "tokens", tokens, "B, N, d")
    check.rank(op, "basis", basis, "B, r, d")
    if basis.dtype != tokens.dtype:
        check.fail(TypeError, op, "basis", f"a tensor of {check.names([basis.dtype])}",
                   f"the dtype of `tokens` ({check.names([tokens.dtype])})")
    check.same_device(op, "basis", basis, "tokens", tokens)
    check.size(op, "basis", basis.shape[0], tokens.shape[0], "B")
    check.size(op, "basis", basis.shape[2], tokens.shape[2], "d")
    return Spec(tuple(tokens.shape[:-1]), torch.float32, tokens.device)
