"""M-RoPE positions of a pruned prompt: what the host knows of each token, and what the device adds."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._config import Grid


def positions(total: int, items: Sequence[tuple[int, int, Grid, float]]) -> tuple[Tensor, int]:
    """`[3, total]` int64 positions of a prompt, and what the first generated token's position is above `total`.

    Text is numbered as if no token were dropped: after an item it goes on behind the highest position of the item's
    whole grid. Every kept token of an item has the item's first position, to which `offsets` is added later.

    Args:
        total: tokens of the pruned prompt.
        items: (first column, columns, grid, step between frames) of each item in order.
    """
    parts, column, position = [], 0, 0
    for start, length, (frames, rows, columns), step in items:
        parts.append(torch.arange(position, position + start - column))
        position += start - column
        parts.append(torch.full((length,), position))
        position += 1 + max(int((frames - 1) * step), rows - 1, columns - 1)
        column = start + length
    parts.append(torch.arange(position, position + total - column))
    position += total - column
    return torch.cat(parts).expand(3, -1).contiguous(), position - total


def offsets(indices: Tensor, grid: Grid, step: float) -> Tensor:
    """`[K, 3]` int32: frame (times `step`, truncated), row and column of tokens `[K]` of a grid."""
    _, rows, columns = grid
    frames = (indices // (rows * columns)).double().mul(step)
    return torch.stack([frames.long(), indices // columns % rows, indices % columns], 1).int()


def join_offsets(tokens: Tensor, away: Tensor) -> Tensor:
    """Offsets `[K, 3]` bit for bit as further channels of tokens `[K, D]`, which 16-bit numbers could not hold."""
    return torch.cat([tokens, away.view(tokens.dtype)], 1)


def split_offsets(joined: Sequence[Tensor], width: int) -> tuple[list[Tensor], Tensor]:
    """The tokens `[K, width]` of each item, and the offsets `[sum of K, 3]` int32."""
    return [rows[:, :width] for rows in joined], torch.cat([rows[:, width:] for rows in joined]).view(torch.int32)
