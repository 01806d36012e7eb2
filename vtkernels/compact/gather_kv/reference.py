"""Plain torch, any device."""

from collections.abc import Sequence

from torch import Tensor

from ..._checks import kv_token_dim
from ..gather_tokens.reference import flag_bad_indices, take_rows


def take_kv(cache: Tensor, indices: Tensor, kv_layout: str) -> Tensor:
    """Rows of one dense cache: [B, H, N, d] or [B, N, H, d]."""
    if kv_layout == "NHD":
        return take_rows(cache, indices, 1)
    return take_rows(cache.transpose(0, 1), indices, 2).transpose(0, 1).contiguous()  # heads lead, then [B, N]


def gather_kv(kv: Sequence[Tensor], indices: Tensor, *, kv_layout: str = "HND",
              status: Tensor | None = None) -> list[Tensor]:
    flag_bad_indices(indices, kv[0].shape[kv_token_dim("gather_kv", kv_layout)], status)
    return [take_kv(t, indices, kv_layout) for t in kv]
