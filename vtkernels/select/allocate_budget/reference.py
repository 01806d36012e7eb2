"""Plain torch, any device, integers only."""

import torch
from torch import Tensor


def integer_weights(weights: Tensor) -> Tensor:
    """[B, S] float32 -> int64: trunc(w * 2**(30 - e)), e the exponent of the row's largest weight, at least -126.

    NaN and what is not above 0 count 0. In a row with an infinity every infinity counts 1, everything else 0.
    """
    bits = torch.where(weights > 0, weights, 0.0).view(torch.int32).to(torch.int64)
    top = bits.amax(-1, keepdim=True) if bits.shape[-1] else bits[:, :1]
    exponent = (bits >> 23).clamp(min=1)
    significand = (bits & 0x7FFFFF) | torch.where(bits >> 23 > 0, 0x800000, 0)
    integers = (significand << 7) >> ((top >> 23).clamp(min=1) - exponent).clamp(max=31)
    infinity = 0xFF << 23
    return torch.where(top == infinity, (bits == infinity).to(torch.int64), integers)


def split(weights: Tensor, total: Tensor, active: Tensor) -> Tensor:
    """[B, S] shares of [B, 1] totals by largest remainder among the active; equal ones where all weigh nothing."""
    weights = torch.where(active, weights, 0)
    weights = torch.where(weights.sum(-1, keepdim=True) == 0, active.to(torch.int64), weights)
    product, whole = weights * total, weights.sum(-1, keepdim=True).clamp(min=1)
    shares, remainders = product // whole, product % whole
    rank = remainders.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return shares + (rank < total - shares.sum(-1, keepdim=True))


def allocate_budget(weights: Tensor, total: int, *, minimum: int = 0, capacity: Tensor | None = None) -> Tensor:
    batch, segments = weights.shape
    if segments == 0:
        return torch.empty(batch, 0, dtype=torch.int32, device=weights.device)
    integers = integer_weights(weights)
    if capacity is None:
        everyone = torch.ones_like(integers, dtype=torch.bool)
        left = torch.full((batch, 1), total - segments * minimum, device=weights.device)
        return (minimum + split(integers, left, everyone)).to(torch.int32)
    least = capacity.to(torch.int64).clamp(min=0, max=minimum)
    room = capacity.to(torch.int64).clamp(min=0) - least
    left = torch.minimum(total - least.sum(-1, keepdim=True), room.sum(-1, keepdim=True))
    full = torch.zeros_like(room, dtype=torch.bool)
    while True:
        shares = split(integers, left - torch.where(full, room, 0).sum(-1, keepdim=True), ~full)
        over = ~full & (shares > room)
        if not over.any():
            return (least + torch.where(full, room, shares)).to(torch.int32)
        full |= over
