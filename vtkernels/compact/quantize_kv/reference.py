"""Plain torch, any device: ranges, codes, bytes, one class of tokens after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._library import STATUS_BAD_INDEX

SMALLEST_STEP = float(torch.finfo(torch.float32).tiny)


def flag_bad_tokens(indices: Sequence[Tensor], tokens: int, status: Tensor | None) -> None:
    if status is not None:
        for chosen in indices:
            bad = ((chosen < 0) | (chosen >= tokens)).any()
            status.bitwise_or_(bad.to(torch.int32) * STATUS_BAD_INDEX)


def ranges(x: Tensor, found: Tensor, dim: int, levels: int) -> tuple[Tensor, Tensor]:
    """Smallest value and step of each group along `dim`; 0, 0 for one without members, NaN, NaN where a member or the
    range is not finite."""
    size = list(x.shape)
    size[dim] = 1
    beyond = x.new_full(size, torch.inf)  # so that an empty group has a minimum
    low = torch.cat([x.masked_fill(~found, torch.inf), beyond], dim).amin(dim)
    high = torch.cat([x.masked_fill(~found, -torch.inf), -beyond], dim).amax(dim)
    step = (high - low) / levels
    step = torch.where(step < SMALLEST_STEP, 0.0, step)
    bad = ~step.isfinite()
    empty = low > high
    return (torch.where(empty, 0.0, torch.where(bad, torch.nan, low)),
            torch.where(empty, 0.0, torch.where(bad, torch.nan, step)))


def codes(x: Tensor, low: Tensor, step: Tensor, levels: int) -> Tensor:
    """Nearest level of each value, 0 where the range is not finite."""
    level = (x - low) * torch.where(step > 0, 1 / step, 0.0)
    return (level.nan_to_num(0.0).clamp(0, levels) + 0.5).to(torch.uint8)


def pack(level: Tensor, bits: int) -> Tensor:
    """Byte i holds the values i, i + bytes, i + 2 bytes, .. of a row, the first one in its lowest bits."""
    each = 8 // bits
    count = -(-level.shape[-1] // each)
    whole = torch.nn.functional.pad(level, (0, count * each - level.shape[-1])).unflatten(-1, (each, count))
    packed = torch.zeros_like(whole[..., 0, :])
    for i in range(each):
        packed |= whole[..., i, :] << (bits * i)
    return packed


def quantize_kv(key: Tensor, value: Tensor, indices: Sequence[Tensor], bits: Sequence[int], *,
                status: Tensor | None = None) -> tuple[list[Tensor], ...]:
    n = key.shape[2]
    flag_bad_tokens(indices, n, status)
    results: tuple[list[Tensor], ...] = ([], [], [], [], [])
    for chosen, width in zip(indices, bits, strict=True):
        levels = 2**width - 1
        valid = (chosen >= 0) & (chosen < n)
        found = valid[:, None, :, None]
        rows = torch.where(valid, chosen, 0).long()[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
        if n:
            k, v = (t.gather(2, rows).float().masked_fill(~found, 0.0) for t in (key, value))
        else:
            k = v = torch.zeros(rows.shape, device=key.device)

        low, step = ranges(k, found.expand_as(k), 2, levels)
        key_codes = pack(codes(k, low[:, :, None], step[:, :, None], levels).masked_fill(~found, 0), width)

        # Values differ in size from channel to channel, and their ranges are those of tokens.
        sizes = torch.where(v.isfinite(), v.abs(), 0.0)
        beyond = sizes.new_zeros(*sizes.shape[:2], 1, sizes.shape[3])  # so that an empty class has a maximum
        scale = torch.cat([sizes, beyond], 2).amax(2).sqrt()
        scale = torch.where(scale == 0, 1.0, scale)
        v = v / scale[:, :, None]
        value_low, value_step = ranges(v, found.expand_as(v), 3, levels)
        value_codes = pack(codes(v, value_low[..., None], value_step[..., None], levels), width)
        for out, t in zip(results, (key_codes, torch.stack([low, step], 2), value_codes,
                                    torch.stack([value_low, value_step], 3), scale), strict=True):
            out.append(t)
    return results
