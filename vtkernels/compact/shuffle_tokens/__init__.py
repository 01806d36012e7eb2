"""Space to depth: the tokens of each window of a grid become one token."""

from torch import Tensor

from ..._checks import not_nested
from ..._library import OPS
from .._autograd import shuffle_with_grad, wants_grad

_op = OPS.shuffle_tokens.default
_back = OPS.unshuffle_tokens.default


def shuffle_tokens(tokens: Tensor, grid_width: int, factor: int = 2, *, order: str = "window") -> Tensor:
    """Put the tokens of each `factor` x `factor` window side by side into the channels of one token.

    Args:
        tokens: `[B, N, D]`, any dtype (moved byte for byte), any strides; a grid in raster order.
        grid_width: tokens in a row of the grid, a multiple of `factor`, as is the number of its rows.
        factor: tokens on a side of a window.
        order: where token (y, x) of a window puts its channel c, and the order of the windows:
            `"window"`: channel `(y * factor + x) * D + c`, windows in raster order. It concatenates tokens, as
            Token-Shuffle does, and is the pixel shuffle of InternVL (`ps_version` v2) at scale 1 / factor.
            `"window_transposed"`: the same channels, windows column by column: InternVL's v1.
            `"channel"`: channel `(c * factor + y) * factor + x`, windows in raster order, as
            `torch.nn.functional.pixel_unshuffle`.

    Returns:
        `[B, N / factor**2, D * factor**2]`, contiguous. `unshuffle_tokens` with the same arguments is the way back.

    Gradients flow to `tokens`: the gradient is the way back. A projection that follows is a matrix product that a
    library does best: `torch.nn.functional.linear(shuffle_tokens(x, w), weight)`; Token-Shuffle projects before it,
    `shuffle_tokens(torch.nn.functional.linear(x, weight), w)`, with `D / factor**2` output channels.

    Raises:
        TypeError: a layout that is not allowed.
        ValueError: a grid that is not whole windows, an unknown order.
        RuntimeError: the same from the native backends.

    Example:
        >>> grid = torch.arange(8).view(1, 8, 1)  # 2 rows of 4
        >>> vtkernels.shuffle_tokens(grid, 4).tolist()
        [[[0, 1, 4, 5], [2, 3, 6, 7]]]

    Source: InternVL (arXiv 2404.16821), Token-Shuffle (arXiv 2504.17789).
    """
    not_nested("shuffle_tokens", tokens=tokens)
    if wants_grad([tokens]):
        return shuffle_with_grad(_op, _back, tokens, grid_width=grid_width, factor=factor, order=order)
    return _op(tokens, grid_width, factor, order=order)
