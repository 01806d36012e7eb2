"""K and V of every layer in one launch: the row mover of `gather_tokens` on [B, H, N, d] or [B, N, H, d]."""

from collections.abc import Sequence

from torch import Tensor

from ... import _triton
from ..._checks import kv_token_dim
from ...tuning import lookup
from ..gather_tokens.triton import gather, moves


def move_kv(op: str, kv: Sequence[Tensor], out: Sequence[Tensor], indices: Tensor, kv_layout: str,
            status: Tensor | None, in_place: bool = False) -> None:
    """Rows `indices` of each cache to the first rows of the cache in `out`."""
    token_dim = kv_token_dim(op, kv_layout)
    per_tensor = indices.stride(0) if indices.dim() == 4 else 0
    per_head = indices.stride(-2) if indices.dim() > 2 and indices.shape[-2] > 1 else 0
    config = lookup.config(op, _triton.device_name(indices.device), kv[0].dtype, k=indices.shape[-1], tensors=len(kv))
    found = [move for i, (t, o) in enumerate(zip(kv, out, strict=True))
             for move in moves(t, o, 0, token_dim, 3 - token_dim, per_head, i * per_tensor)]
    gather(found, indices, kv[0].shape[token_dim], status, config, check=any(t.numel() == 0 for t in kv),
           in_place=in_place)


def gather_kv_out(kv: Sequence[Tensor], indices: Tensor, *, kv_layout: str = "HND", out: Sequence[Tensor],
                  status: Tensor | None = None) -> None:
    move_kv("gather_kv", kv, out, indices, kv_layout, status)
