"""Plain torch, any device: the readable truth. Stores the whole matrix, which no other backend does."""

import torch
from torch import Tensor


def attention_scores(query: Tensor, key: Tensor, *, lse: Tensor | None = None, row_weights: Tensor | None = None,
                     scale: float | None = None, causal: bool = False, causal_offset: int | None = None,
                     key_start: int = 0, key_len: int = -1, reduce_rows: str = "mean", reduce_heads: str = "mean",
                     logits: bool = False, layout: str = "HND") -> Tensor:
    if layout == "NHD":
        query, key = query.transpose(1, 2), key.transpose(1, 2)
    rows, keys = query.shape[2], key.shape[2]
    seen = torch.ones(1, rows, keys, dtype=torch.bool, device=query.device)
    if causal:
        seen = causal_mask(rows, keys, keys - rows if causal_offset is None else causal_offset, query.device)[None]
    scores = pooled(query, key, seen, lse, row_weights, scale, reduce_rows, reduce_heads, logits)
    return scores[..., key_start:keys if key_len == -1 else key_start + key_len].contiguous()


def causal_mask(rows: int, keys: int, offset: int, device: torch.device) -> Tensor:
    """[rows, keys]: row i sees the keys up to offset + i."""
    offset = max(-rows, min(offset, keys))
    return torch.arange(keys, device=device) <= offset + torch.arange(rows, device=device)[:, None]


def pooled(query: Tensor, key: Tensor, seen: Tensor, lse: Tensor | None, row_weights: Tensor | None,
           scale: float | None, reduce_rows: str, reduce_heads: str, logits: bool) -> Tensor:
    """[B, Hq, Tq, d] x [B, Hkv, S, d] -> [B, S], or [B, Hq, S]; `seen` [1, Tq, S] says which keys a row sees."""
    batch, heads, rows, d = query.shape
    key = key.float().repeat_interleave(heads // key.shape[1], 1)
    values = query.float() @ key.mT * (d ** -0.5 if scale is None else scale)  # [B, Hq, Tq, S]
    if lse is not None:
        values = (values - lse[..., None]).exp()
    elif not logits:
        values = values.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    weights = query.new_ones(batch, rows, dtype=torch.float32) if row_weights is None else row_weights
    used = seen[:, None] & (weights != 0)[:, None, :, None]
    values = values * weights[:, None, :, None]

    if reduce_rows == "max" and rows > 0:
        best = values.masked_fill(~used, -torch.inf).amax(2)
        scores = torch.where(used.any(2), best, 0.0)
    else:
        scores = torch.where(used, values, 0.0).sum(2)
    if reduce_rows == "mean":
        total = weights.sum(-1)[:, None, None]
        scores = torch.where(total == 0, 0.0, scores / total)
    if reduce_heads == "max":
        scores = scores.amax(1)
    elif reduce_heads != "none":
        scores = scores.sum(1) if reduce_heads == "sum" else scores.mean(1)
    return scores + 0.0  # + 0.0 turns -0 into +0
