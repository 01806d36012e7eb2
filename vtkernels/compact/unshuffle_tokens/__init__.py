"""Depth to space: each token becomes a window of a grid."""

from torch import Tensor

from ..._checks import not_nested
from ..._library import OPS
from .._autograd import shuffle_with_grad, wants_grad

_op = OPS.unshuffle_tokens.default
_back = OPS.shuffle_tokens.default


def unshuffle_tokens(tokens: Tensor, grid_width: int, factor: int = 2, *, order: str = "window") -> Tensor:
    """Take the tokens of each window out of the channels of one token: the way back from `shuffle_tokens`.

    Args:
        tokens: `[B, n, factor**2 * D]`, any dtype (moved byte for byte), any strides.
        grid_width: tokens in a row of the grid that comes out, a multiple of `factor`.
        factor: tokens on a side of a window.
        order: as in `shuffle_tokens`.

    Returns:
        `[B, n * factor**2, D]`, contiguous, a grid in raster order. Gradients flow to `tokens`.

    Raises:
        TypeError: a layout that is not allowed.
        ValueError: channels or tokens that do not fit the grid, an unknown order.
        RuntimeError: the same from the native backends.

    Example:
        >>> grid = torch.randn(1, 8, 3)
        >>> torch.equal(vtkernels.unshuffle_tokens(vtkernels.shuffle_tokens(grid, 4), 4), grid)
        True

    Source: Token-Shuffle (arXiv 2504.17789), its unshuffle after the transformer.
    """
    not_nested("unshuffle_tokens", tokens=tokens)
    if wants_grad([tokens]):
        return shuffle_with_grad(_op, _back, tokens, grid_width=grid_width, factor=factor, order=order)
    return _op(tokens, grid_width, factor, order=order)
