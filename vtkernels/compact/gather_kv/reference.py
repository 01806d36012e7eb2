"""Plain torch, any device."""

from collections.abc import Sequence

from torch import Tensor

from ..._checks import kv_token_dim
from ..gather_tokens.reference import flag_bad_indices, take_rows


def take_kv(cache: Tensor, indices: Tensor, kv_layout: str) -> Tensor:
    """Rows of one dense cache [B, H, N, d] or [B, N, H, d]; indices [B, k], or [B, H, k] with heads of their own."""
    if indices.dim() == 3:
        heads_first = cache if kv_layout == "HND" else cache.transpose(1, 2)
        own = indices.expand(*heads_first.shape[:2], -1)
        rows = take_rows(heads_first.flatten(0, 1), own.flatten(0, 1), 1).unflatten(0, heads_first.shape[:2])
        return rows if kv_layout == "HND" else rows.transpose(1, 2).contiguous()
    if kv_layout == "NHD":
        return take_rows(cache, indices, 1)
    return take_rows(cache.transpose(0, 1), indices, 2).transpose(0, 1).contiguous()  # heads lead, then [B, N]


def of_tensor(indices: Tensor, i: int) -> Tensor:
    """The indices of the i-th cache."""
    return indices[i] if indices.dim() == 4 else indices


def gather_kv(kv: Sequence[Tensor], indices: Tensor, *, kv_layout: str = "HND",
              status: Tensor | None = None) -> list[Tensor]:
    flag_bad_indices(indices, kv[0].shape[kv_token_dim("gather_kv", kv_layout)], status)
    return [take_kv(t, of_tensor(indices, i), kv_layout) for i, t in enumerate(kv)]
