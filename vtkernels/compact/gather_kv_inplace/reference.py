"""Plain torch, any device: what `gather_kv` gives, copied to the front."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._checks import kv_token_dim
from ..gather_kv.reference import of_tensor, take_kv
from ..gather_tokens.reference import flag_bad_indices


def gather_kv_inplace(kv: Sequence[Tensor], indices: Tensor, *, kv_layout: str = "HND",
                      status: Tensor | None = None) -> None:
    token_dim = kv_token_dim("gather_kv_inplace", kv_layout)
    kept = indices.shape[-1]
    # A row from before its new place has been overwritten by then.
    indices = torch.where(indices < torch.arange(kept, device=indices.device), -1, indices)
    flag_bad_indices(indices, kv[0].shape[token_dim], status)
    for i, t in enumerate(kv):
        t.narrow(token_dim, 0, kept).copy_(take_kv(t, of_tensor(indices, i), kv_layout))
