"""K and V of every layer in one launch: the row mover of `gather_tokens` on [B, H, N, d] or [B, N, H, d]."""

from collections.abc import Sequence

from torch import Tensor

from ... import _triton
from ..._checks import kv_token_dim
from ...tuning import lookup
from ..gather_tokens.triton import gather, moves


def gather_kv_out(kv: Sequence[Tensor], indices: Tensor, *, kv_layout: str = "HND", out: Sequence[Tensor],
                  status: Tensor | None = None) -> None:
    token_dim = kv_token_dim("gather_kv", kv_layout)
    config = lookup.config("gather_kv", _triton.device_name(indices.device), kv[0].dtype, k=indices.shape[1],
                           tensors=len(kv))
    gather([move for t, o in zip(kv, out, strict=True) for move in moves(t, o, 0, token_dim)], indices,
           kv[0].shape[token_dim], status, config)
