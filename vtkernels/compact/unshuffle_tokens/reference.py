"""Plain torch, any device: the dimensions exchanged back."""

import torch
from torch import Tensor

from ..shuffle_tokens.reference import AXES


def unshuffle_tokens(tokens: Tensor, grid_width: int, factor: int = 2, *, order: str = "window") -> Tensor:
    batch, n, width = tokens.shape
    columns, channels = grid_width // factor, width // (factor * factor)
    fine = (batch, n // columns, factor, columns, factor, channels)
    axes = AXES[order]
    grid = tokens.reshape([fine[a] for a in axes])
    back = grid.permute([axes.index(a) for a in range(6)]).clone(memory_format=torch.contiguous_format)
    return back.view(batch, n * factor * factor, channels)
