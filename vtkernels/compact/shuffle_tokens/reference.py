"""Plain torch, any device: the tokens as a grid of windows, its dimensions exchanged."""

import torch
from torch import Tensor

# [B, window rows, rows in a window, window columns, columns in a window, D], in the order of the output.
AXES = {"window": (0, 1, 3, 2, 4, 5), "window_transposed": (0, 3, 1, 2, 4, 5), "channel": (0, 1, 3, 5, 2, 4)}


def shuffle_tokens(tokens: Tensor, grid_width: int, factor: int = 2, *, order: str = "window") -> Tensor:
    batch, n, width = tokens.shape
    grid = tokens.unflatten(1, (n // (grid_width * factor), factor, grid_width // factor, factor))
    moved = grid.permute(AXES[order]).clone(memory_format=torch.contiguous_format)
    return moved.view(batch, n // (factor * factor), width * factor * factor)
