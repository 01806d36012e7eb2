"""Space to depth in one launch, as a copy of integers."""

from torch import Tensor

from .._shuffle import shuffle


def shuffle_tokens_out(tokens: Tensor, grid_width: int, factor: int = 2, *, order: str = "window", out: Tensor) -> None:
    shuffle(tokens, out, grid_width, factor, order, unshuffle=False)
