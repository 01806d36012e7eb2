"""Plain torch, any device: rows moved as bytes, zeros where an index is outside its row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._library import STATUS_BAD_INDEX


def take_rows(t: Tensor, indices: Tensor, token_dim: int) -> Tensor:
    """Rows `indices` [B, k] of `t`, whose batch dimension stands before `token_dim`."""
    raw = t.unsqueeze(-1).contiguous().view(torch.uint8).movedim((token_dim - 1, token_dim), (0, 1))  # [B, N, ..]
    batch, n = raw.shape[:2]
    valid = (indices >= 0) & (indices < n)
    if n == 0:
        rows = raw.new_zeros((*indices.shape, *raw.shape[2:]))
    else:
        rows = raw[torch.arange(batch, device=t.device)[:, None], indices.clamp(0, n - 1)]  # [B, k, ..]
        rows = rows * valid.view(*valid.shape, *[1] * (rows.dim() - 2))
    return rows.movedim((0, 1), (token_dim - 1, token_dim)).contiguous().view(t.dtype).squeeze(-1)


def flag_bad_indices(indices: Tensor, n: int, status: Tensor | None) -> None:
    if status is not None:
        bad = ((indices < 0) | (indices >= n)).any()
        status.bitwise_or_(bad.to(torch.int32) * STATUS_BAD_INDEX)


def gather_tokens(tensors: Sequence[Tensor], indices: Tensor, *, token_dims: Sequence[int] | None = None,
                  status: Tensor | None = None) -> list[Tensor]:
    dims = token_dims or [1] * len(tensors)
    flag_bad_indices(indices, tensors[0].shape[dims[0]], status)
    return [take_rows(t, indices, dim) for t, dim in zip(tensors, dims, strict=True)]
