"""Plain torch, any device: `prune_topk_varlen`, then the pages. Reads the metadata on the host."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._library import STATUS_BAD_SEQLENS
from ...compact.compact_kv_paged.reference import compact_rows
from ...select.select_topk_varlen.reference import ascending_bounds
from ..prune_topk_varlen.reference import prune_topk_varlen


def prune_topk_paged(hidden: Tensor, prototypes: Tensor, cu_seqlens: Tensor, k: Tensor, total_out: int,
                     kv: Sequence[Tensor], block_table: Tensor, seq_lens: Tensor, *, keep_similar: bool = False,
                     context_lens: Tensor | None = None, span_starts: Tensor | None = None,
                     span_lens: Tensor | None = None, prototype_rnorm: Tensor | None = None,
                     dst_block_table: Tensor | None = None, kv_layout: str = "NHD", allow_shared: bool = False,
                     status: Tensor | None = None) -> tuple[Tensor, ...]:
    rows, _, indices, scores, cu_out = prune_topk_varlen(
        hidden, prototypes, cu_seqlens, k, total_out, keep_similar=keep_similar, span_starts=span_starts,
        span_lens=span_lens, prototype_rnorm=prototype_rnorm, status=status)
    bounds, out_bounds = ascending_bounds(cu_seqlens.tolist(), hidden.shape[0]), cu_out.tolist()
    capacity = block_table.shape[1] * kv[0].shape[1 if kv_layout == "NHD" else 2]
    kept, flags, prefixes = [], [], []
    for b, given in enumerate(seq_lens.tolist()):
        tokens = bounds[b + 1] - bounds[b]
        context = given - tokens if context_lens is None else int(context_lens[b])
        held = min(max(given, 0), capacity)
        before = min(max(context, 0), held)
        after = min(max(context + tokens, before), held)
        chosen = indices[out_bounds[b]:out_bounds[b + 1]].tolist()
        kept.append([*range(before), *(i - bounds[b] + context for i in chosen), *range(after, held)])
        flags.append(STATUS_BAD_SEQLENS * ((before, after) != (context, context + tokens)))
        prefixes.append(before)
    lengths, slots, freed = compact_rows(kv, block_table, seq_lens, kept, flags, dst_block_table, kv_layout,
                                         allow_shared, status)
    slot_mapping = torch.full((total_out,), -1)
    for b, row in enumerate(slots):
        if row:
            first, last = out_bounds[b], out_bounds[b + 1]
            slot_mapping[first:last] = torch.tensor(row[prefixes[b]:prefixes[b] + last - first])
    return rows, indices, scores, cu_out, lengths, slot_mapping.to(hidden.device), freed
