"""Plain torch, any device: bytes, levels, values, rows to their places."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..quantize_kv.reference import flag_bad_tokens


def owners(indices: Sequence[Tensor], tokens: int) -> Tensor:
    """[B, tokens] which row of all classes one after the other stands for each token: the last one that names it, -1
    where none does."""
    chosen = torch.cat([i.long() for i in indices], 1)
    place = torch.where((chosen >= 0) & (chosen < tokens), chosen, tokens)
    rows = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)
    owner = chosen.new_full((chosen.shape[0], tokens + 1), -1)
    return owner.scatter_reduce_(1, place, rows, "amax")[:, :tokens]


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    levels = [(packed >> (bits * i)) & (2**bits - 1) for i in range(8 // bits)]
    return torch.cat(levels, -1)[..., :width].float()


def dequantize_kv(key_codes: Sequence[Tensor], key_params: Sequence[Tensor], value_codes: Sequence[Tensor],
                  value_params: Sequence[Tensor], value_scales: Sequence[Tensor], indices: Sequence[Tensor],
                  bits: Sequence[int], tokens: int, *, dtype: torch.dtype,
                  status: Tensor | None = None) -> tuple[Tensor, Tensor]:
    flag_bad_tokens(indices, tokens, status)
    width = value_scales[0].shape[-1]
    keys, values = [], []
    for c, each in enumerate(bits):
        low, step = key_params[c].unbind(2)
        keys.append(low[:, :, None] + unpack(key_codes[c], each, width) * step[:, :, None])
        low, step = value_params[c].unbind(3)
        level = unpack(value_codes[c], each, width)
        values.append((low[..., None] + level * step[..., None]) * value_scales[c][:, :, None])
    owner = owners(indices, tokens)
    row = owner.clamp(min=0)[:, None, :, None].expand(-1, value_scales[0].shape[1], -1, width)
    missing = (owner < 0)[:, None, :, None]

    def restored(rows: Sequence[Tensor]) -> Tensor:
        beyond = rows[0].new_zeros(*rows[0].shape[:2], 1, width)  # so that there is a row when no class has one
        whole = torch.cat([*rows, beyond], 2)
        return whole.gather(2, row).masked_fill(missing, 0.0).to(dtype)

    return restored(keys), restored(values)
