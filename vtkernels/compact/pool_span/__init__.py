"""Pool a span of tokens by windows, and copy the rest."""

from typing import Any

import torch
from torch import Tensor

from ..._checks import choice, dense, fail, not_nested
from ..._contracts.windows import Windows, windows
from ..._library import OPS
from .._autograd import wants_grad
from ..gather_tokens import gather_tokens
from .reference import members

_op = OPS.pool_span.default


def pool_span(tokens: Tensor, window: int, *, window_width: int = 0, grid_width: int = 0, span_start: int = 0,
              span_len: int = -1, ceil: bool = False) -> Tensor:
    """Replace the windows of a span by the means of their tokens and copy the other tokens, in one pass.

    Args:
        tokens: `[B, N, D]`, float32, float16 or bfloat16, any strides.
        window: tokens on a side of a window. Windows do not overlap.
        window_width: tokens of a 2-D window in a row of the grid; 0: as many as `window`, a square.
        grid_width: 0: windows are `window` tokens in a row, whatever the picture. Else the span is a grid of this
            width in raster order, and windows are `window` rows x `window_width` columns of it.
        span_start, span_len: the visual tokens, the same in all rows; -1: to the end of the row. Tokens before and
            after it are copied byte for byte.
        ceil: a window that does not divide its side is an error, unless this is set: then the last windows of that
            side hold what is left, and their means are over the tokens that they have.

    Returns:
        `[B, N', D]` in the dtype of the input, with one token for each window in place of the span, windows in
        raster order.

    Sums are in float32, in the order of the tokens, so results are repeatable. A window of one token is that token,
    bit for bit; NaN and infinities spread over their own window only. Gradients flow to `tokens`. Position ids are
    pooled alike by `pool_positions`. Segments of other shapes, of differing lengths or of differing spans in the rows
    of a batch are groups of `merge_tokens`.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: a span outside the row, a span that is not whole rows of `grid_width`, a window that does not
            divide.
        RuntimeError: the same from the native backends.

    Example:
        >>> tokens = torch.arange(8.0).view(1, 8, 1)
        >>> vtkernels.pool_span(tokens, 2, span_start=1, span_len=6).flatten().tolist()
        [0.0, 1.5, 3.5, 5.5, 7.0]
        >>> vtkernels.pool_span(tokens, 2, grid_width=4).flatten().tolist()
        [2.5, 4.5]

    Source: 1-D windows over the raster order as in LLaVolta (arXiv 2406.20092), whose kernel equals its stride; 2-D
    windows as the proxy tokens of PT-DiT (arXiv 2409.04005).
    """
    not_nested("pool_span", tokens=tokens)
    if wants_grad([tokens]):
        return _Pool.apply(tokens, window, window_width, grid_width, span_start, span_len, ceil)
    return _op(tokens, window, window_width=window_width, grid_width=grid_width, span_start=span_start,
               span_len=span_len, ceil=ceil)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, window: int, window_width: int, grid_width: int, span_start: int,
                span_len: int, ceil: bool) -> Tensor:
        ctx.n = tokens.shape[1]
        ctx.windows = windows("pool_span", tokens, ctx.n, window, window_width, grid_width, span_start, span_len, ceil)
        return _op(tokens, window, window_width=window_width, grid_width=grid_width, span_start=span_start,
                   span_len=span_len, ceil=ceil)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Each token gets the gradient of its window over the number of its tokens."""
        w, batch = ctx.windows, grad.shape[0]
        rows, columns = (torch.arange(size, device=grad.device) // step
                         for size, step in ((w.rows, w.height), (w.columns, w.width)))
        place = w.start + rows[:, None] * w.grid[1] + columns
        after = torch.arange(w.start + w.count, grad.shape[1], device=grad.device)
        source = torch.cat([torch.arange(w.start, device=grad.device), place.flatten(), after])
        share = torch.ones(grad.shape[1], device=grad.device)
        share[w.start:w.start + w.count] = 1 / members(w, grad.device).flatten()
        (spread,) = gather_tokens([grad], source.expand(batch, -1))
        return (spread.float() * share[source][:, None]).to(grad.dtype), None, None, None, None, None, None


POSITIONS = ("mean", "first")


def pool_positions(position_ids: Tensor, window: int, *, window_width: int = 0, grid_width: int = 0,
                   span_start: int = 0, span_len: int = -1, ceil: bool = False, reduce: str = "mean") -> Tensor:
    """Position ids of the tokens that `pool_span` returns. Plain torch, without a sync: ids are a few bytes a token.

    Args:
        position_ids: `[.., N]` of an integer dtype, such as `[B, N]` or `[3, B, N]`.
        window, window_width, grid_width, span_start, span_len, ceil: as in `pool_span`.
        reduce: `"mean"`: the mean of the ids of a window without its fraction (LLaVolta's rule; it computes in
            float16, which is exact for ids below 1024 only, this is exact for all); `"first"`: that of its first token.

    Returns:
        `[.., N']` in the dtype of the input.

    Example:
        >>> vtkernels.pool_positions(torch.arange(8)[None], 2, span_start=1, span_len=6).tolist()
        [[0, 1, 3, 5, 7]]
        >>> vtkernels.pool_positions(torch.arange(8)[None], 4, reduce="first").tolist()
        [[0, 4]]
    """
    op = "pool_positions"
    dense(op, "position_ids", position_ids)
    choice(op, "reduce", reduce, POSITIONS)
    if position_ids.is_floating_point() or position_ids.is_complex() or position_ids.dtype == torch.bool:
        fail(TypeError, op, "position_ids", f"a tensor of {position_ids.dtype}", "an integer dtype")
    if position_ids.dim() == 0:
        fail(ValueError, op, "position_ids", "a 0-D tensor", "[.., N]")
    w = windows(op, position_ids, position_ids.shape[-1], window, window_width, grid_width, span_start, span_len, ceil)
    grid = position_ids[..., w.start:w.start + w.length].unflatten(-1, (w.rows, w.columns))
    pooled = grid[..., ::w.height, ::w.width]
    if reduce == "mean":
        pooled = torch.div(_sums(grid, w), members(w, grid.device), rounding_mode="trunc").to(position_ids.dtype)
    return torch.cat([position_ids[..., :w.start], pooled.flatten(-2), position_ids[..., w.start + w.length:]], -1)


def _sums(grid: Tensor, w: Windows) -> Tensor:
    """The sums of the windows of `[.., rows, columns]`, by zeros up to whole windows."""
    rows, columns = w.grid
    padding = (0, columns * w.width - w.columns, 0, rows * w.height - w.rows)
    whole = torch.nn.functional.pad(grid.long(), padding)
    return whole.unflatten(-1, (columns, w.width)).unflatten(-3, (rows, w.height)).sum((-3, -1))
