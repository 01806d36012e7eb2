"""Plain torch, any device: angles in float64, rotation in float32."""

import torch
from torch import Tensor

from ..._checks import kv_token_dim


def rotate_keys(keys: Tensor, deltas: Tensor, inv_freq: Tensor, *, interleaved: bool = False,
                kv_layout: str = "HND") -> Tensor:
    axes = deltas if deltas.dim() == 3 else deltas[None]
    frequencies = inv_freq if inv_freq.dim() == 2 else inv_freq[None]
    pairs = frequencies.shape[1]
    angles = torch.zeros(*axes.shape[1:], pairs, dtype=torch.float64, device=keys.device)
    for delta, frequency in zip(axes, frequencies, strict=True):
        angles += delta[..., None].double() * frequency.double()
    angles = angles.unsqueeze(3 - kv_token_dim("rotate_keys", kv_layout))  # one for all heads
    cos, sin = angles.cos().float(), angles.sin().float()

    out = keys.clone(memory_format=torch.contiguous_format)
    if interleaved:
        first, second = out[..., 0:2 * pairs:2], out[..., 1:2 * pairs:2]
    else:
        first, second = out[..., :pairs], out[..., pairs:2 * pairs]
    x, y = first.float(), second.float()
    turned = (x * cos - y * sin).to(keys.dtype), (y * cos + x * sin).to(keys.dtype)
    for part, new in zip((first, second), turned, strict=True):
        part.copy_(torch.where(angles == 0, part, new))
    return out
