"""Contracts of the fused ops."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks as check
from .compact import paged_kv
from .spec import Spec, with_tokens


def prune_topk(hidden: Tensor, prototypes: Tensor, k: int, kv: Sequence[Tensor] | None = None, *,
               keep_similar: bool = False, span_start: int = 0, span_len: int = -1,
               span_starts: Tensor | None = None, prototype_rnorm: Tensor | None = None,
               kv_layout: str = "HND") -> tuple[Spec, list[Spec], Spec, Spec]:
    op = "prune_topk"
    check.floating(op, "hidden", hidden)
    check.rank(op, "hidden", hidden, "B, N, D")
    check.prototypes(op, prototypes, prototype_rnorm, hidden, "hidden")
    b, n, d = hidden.shape
    length = check.span(op, n, span_start, span_len, span_starts, b, hidden)
    check.in_range(op, "k", k, 0, length, "the length of the span")
    caches = check.kv_caches(op, kv, kv_layout, b, n, hidden)
    kept = n - length + k
    token_dim = check.kv_token_dim(op, kv_layout)
    return (Spec((b, kept, d), hidden.dtype, hidden.device), [with_tokens(t, token_dim, kept) for t in caches],
            Spec((b, kept), torch.int64, hidden.device), Spec((b, length), torch.float32, hidden.device))


def _varlen(op: str, hidden: Tensor, prototypes: Tensor, cu_seqlens: Tensor, k: Tensor, total_out: int,
            span_starts: Tensor | None, span_lens: Tensor | None, prototype_rnorm: Tensor | None) -> None:
    check.floating(op, "hidden", hidden)
    check.rank(op, "hidden", hidden, "T, D")
    check.prototypes(op, prototypes, prototype_rnorm, hidden, "hidden")
    check.dense(op, "k", k)
    check.rank(op, "k", k, "B")
    b = k.shape[0]
    check.vector(op, "k", k, b, (torch.int32,), hidden, "B")
    check.vector(op, "cu_seqlens", cu_seqlens, b + 1, (torch.int32,), hidden, "B + 1")
    if (span_starts is None) != (span_lens is None):
        check.fail(ValueError, op, "span_starts, span_lens", "only one of them", "both, or neither (whole sequences)")
    if span_starts is not None:
        check.vector(op, "span_starts", span_starts, b, (torch.int32,), hidden, "B")
        check.vector(op, "span_lens", span_lens, b, (torch.int32,), hidden, "B")
    check.in_range(op, "total_out", total_out, 0, hidden.shape[0], "at most the T packed tokens")


def _varlen_specs(hidden: Tensor, k: Tensor, total_out: int) -> tuple[Spec, Spec, Spec, Spec]:
    """hidden, indices, scores, cu_seqlens."""
    dev = hidden.device
    return (Spec((total_out, hidden.shape[1]), hidden.dtype, dev), Spec((total_out,), torch.int64, dev),
            Spec((hidden.shape[0],), torch.float32, dev), Spec((k.shape[0] + 1,), torch.int32, dev))


def prune_topk_varlen(hidden: Tensor, prototypes: Tensor, cu_seqlens: Tensor, k: Tensor, total_out: int,
                      kv: Sequence[Tensor] | None = None, *, keep_similar: bool = False,
                      span_starts: Tensor | None = None, span_lens: Tensor | None = None,
                      prototype_rnorm: Tensor | None = None,
                      kv_layout: str = "HND") -> tuple[Spec, list[Spec], Spec, Spec, Spec]:
    op = "prune_topk_varlen"
    _varlen(op, hidden, prototypes, cu_seqlens, k, total_out, span_starts, span_lens, prototype_rnorm)
    caches = check.kv_caches(op, kv, kv_layout, 1, hidden.shape[0], hidden, packed=True)
    token_dim = check.kv_token_dim(op, kv_layout, packed=True)
    rows, indices, scores, lengths = _varlen_specs(hidden, k, total_out)
    return rows, [with_tokens(t, token_dim, total_out) for t in caches], indices, scores, lengths


def prune_topk_paged(hidden: Tensor, prototypes: Tensor, cu_seqlens: Tensor, k: Tensor, total_out: int,
                     kv: Sequence[Tensor], block_table: Tensor, seq_lens: Tensor, *, keep_similar: bool = False,
                     context_lens: Tensor | None = None, span_starts: Tensor | None = None,
                     span_lens: Tensor | None = None, prototype_rnorm: Tensor | None = None,
                     dst_block_table: Tensor | None = None, kv_layout: str = "NHD",
                     allow_shared: bool = False) -> tuple[Spec, ...]:
    op = "prune_topk_paged"
    _varlen(op, hidden, prototypes, cu_seqlens, k, total_out, span_starts, span_lens, prototype_rnorm)
    lengths, freed = paged_kv(op, kv, block_table, seq_lens, dst_block_table, kv_layout, allow_shared, k.shape[0])
    check.same_device(op, "kv[0]", kv[0], "hidden", hidden)
    if context_lens is not None:
        check.vector(op, "context_lens", context_lens, k.shape[0], (torch.int32,), hidden, "B")
    slots = Spec((total_out,), torch.int64, hidden.device)
    return (*_varlen_specs(hidden, k, total_out), lengths, slots, freed)


def workspace_size(batch: int) -> int:
    """int32 words that `prune_topk.out` and its variants want for `batch` rows."""
    return 64 + 8 * batch
