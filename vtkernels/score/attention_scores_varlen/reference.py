"""Plain torch, any device: one sequence after the other. Reads the metadata on the host."""

import torch
from torch import Tensor

from ..._library import STATUS_BAD_INDEX, STATUS_BAD_SEQLENS
from ..attention_scores.reference import causal_mask, pooled


def clamped_bounds(cu_seqlens: Tensor, tokens: int) -> tuple[list[int], bool]:
    """Bounds in 0 .. tokens that never decrease, and whether those given already were, from 0 on."""
    given = cu_seqlens.tolist()
    bounds: list[int] = []
    for value in given:
        bounds.append(max(min(max(value, 0), tokens), bounds[-1] if bounds else 0))
    return bounds, bounds == given and bounds[0] == 0


def attention_scores_varlen(query: Tensor, key: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, total_k: int,
                            max_seqlen_q: int, max_seqlen_k: int, *, block_table: Tensor | None = None,
                            lse: Tensor | None = None, row_weights: Tensor | None = None, scale: float | None = None,
                            causal: bool = False, reduce_rows: str = "mean", reduce_heads: str = "mean",
                            logits: bool = False, kv_layout: str = "NHD", status: Tensor | None = None) -> Tensor:
    if kv_layout == "HND":  # [Tk, Hkv, d], or [blocks, block_size, Hkv, d]
        key = key.transpose(-3, -2)
    query_bounds, good_q = clamped_bounds(cu_seqlens_q, query.shape[0])
    key_bounds, good_k = clamped_bounds(cu_seqlens_k, total_k)
    flags = 0 if good_q and good_k else STATUS_BAD_SEQLENS
    shape = (query.shape[1], total_k) if reduce_heads == "none" else (total_k,)
    out = query.new_full(shape, torch.nan, dtype=torch.float32)
    for i in range(len(query_bounds) - 1):
        first, begin = query_bounds[i], key_bounds[i]
        rows = min(query_bounds[i + 1] - first, max_seqlen_q)
        keys = min(key_bounds[i + 1] - begin, max_seqlen_k)
        if first + rows != query_bounds[i + 1] or begin + keys != key_bounds[i + 1]:
            flags |= STATUS_BAD_SEQLENS
        q = query[first:first + rows].transpose(0, 1)[None]
        if block_table is None:
            k = key[begin:begin + keys]
            valid = torch.ones(keys, dtype=torch.bool, device=key.device)
        else:
            k, valid = _paged_keys(key, block_table[i], keys)
            if not valid.all():
                flags |= STATUS_BAD_INDEX
        seen = valid.expand(1, rows, keys)
        if causal:
            seen = seen & causal_mask(rows, keys, keys - rows, query.device)
        out[..., begin:begin + keys] = pooled(
            q, k.transpose(0, 1)[None], seen, None if lse is None else lse[None, :, first:first + rows],
            None if row_weights is None else row_weights[None, first:first + rows], scale, reduce_rows, reduce_heads,
            logits)[0]
    if status is not None:
        status.bitwise_or_(flags)
    return out


def _paged_keys(key: Tensor, table: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """[keys, Hkv, d] from [blocks, block_size, Hkv, d], and which of them the table has; the others are 0."""
    blocks, size = key.shape[:2]
    position = torch.arange(keys, device=key.device)
    column = position // size
    entry = torch.full_like(position, -1)
    listed = column < table.shape[0]
    entry[listed] = table[column[listed]].to(position.dtype)
    valid = (entry >= 0) & (entry < blocks)
    gathered = key.new_zeros(keys, *key.shape[2:])
    gathered[valid] = key[entry[valid], position[valid] % size]
    return gathered, valid
