"""Depth to space in one launch, as a copy of integers."""

from torch import Tensor

from .._shuffle import shuffle


def unshuffle_tokens_out(tokens: Tensor, grid_width: int, factor: int = 2, *, order: str = "window",
                         out: Tensor) -> None:
    shuffle(out, tokens, grid_width, factor, order, unshuffle=True)
