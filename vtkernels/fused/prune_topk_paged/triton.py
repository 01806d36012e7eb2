"""The launches of `prune_topk_varlen`, then those of `compact_kv_paged` on the same indices."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...compact.compact_kv_paged.triton import compact
from ..prune_topk_varlen.triton import prune_topk_varlen_out


def cache_spans(cu_seqlens: Tensor, cu_out: Tensor, tokens: int, seq_lens: Tensor,
                context_lens: Tensor | None) -> Tensor:
    """[B, 5] int64: where the kept indices of a row begin and how many there are, what to add to make them positions
    in the cache, and how many tokens of the cache lie before the row's tokens, and where those after them begin."""
    bounds = cu_seqlens.long().clamp(0, tokens).cummax(0).values
    begin, length = bounds[:-1], bounds.diff()
    context = seq_lens.long() - length if context_lens is None else context_lens.long()
    out = cu_out.long()
    return torch.stack([out[:-1], out.diff(), context - begin, context, context + length], 1)


def prune_topk_paged_out(hidden: Tensor, prototypes: Tensor, cu_seqlens: Tensor, k: Tensor, total_out: int,
                         kv: Sequence[Tensor], block_table: Tensor, seq_lens: Tensor, *, keep_similar: bool = False,
                         context_lens: Tensor | None = None, span_starts: Tensor | None = None,
                         span_lens: Tensor | None = None, prototype_rnorm: Tensor | None = None,
                         dst_block_table: Tensor | None = None, kv_layout: str = "NHD", allow_shared: bool = False,
                         out_hidden: Tensor, out_indices: Tensor, out_scores: Tensor, out_cu_seqlens: Tensor,
                         out_seq_lens: Tensor, out_slot_mapping: Tensor, out_freed_blocks: Tensor,
                         workspace: Tensor | None = None, status: Tensor | None = None) -> None:
    prune_topk_varlen_out(hidden, prototypes, cu_seqlens, k, total_out, keep_similar=keep_similar,
                          span_starts=span_starts, span_lens=span_lens, prototype_rnorm=prototype_rnorm,
                          out_hidden=out_hidden, out_kv=[], out_indices=out_indices, out_scores=out_scores,
                          out_cu_seqlens=out_cu_seqlens, workspace=workspace, status=status)
    out_slot_mapping.fill_(-1)
    spans = cache_spans(cu_seqlens, out_cu_seqlens, hidden.shape[0], seq_lens, context_lens)
    compact("prune_topk_paged", kv, block_table, seq_lens, out_indices, None, spans, dst_block_table, kv_layout,
            allow_shared, out_seq_lens, out_slot_mapping, out_freed_blocks, status)
