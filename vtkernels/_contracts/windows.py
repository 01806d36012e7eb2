"""A span of tokens cut into windows, for the ops that pool."""

from typing import Any, NamedTuple

from torch import Tensor

from .. import _checks as check


class Windows(NamedTuple):
    """The span as a grid of `rows` x `columns` tokens, cut into windows of `height` x `width`. 1-D is one column."""

    start: Any
    rows: Any
    columns: Any
    height: Any
    width: Any

    @property
    def length(self) -> Any:
        return self.rows * self.columns

    @property
    def grid(self) -> tuple[Any, Any]:
        """Rows and columns of windows."""
        return (self.rows + self.height - 1) // self.height, (self.columns + self.width - 1) // self.width

    @property
    def count(self) -> Any:
        rows, columns = self.grid
        return rows * columns


def windows(op: str, ref: Tensor, n: Any, window: Any, window_width: Any, grid_width: Any, span_start: Any,
            span_len: Any, ceil: bool) -> Windows:
    """The windows of a span of a row of `n` tokens, after all checks."""
    check.in_range(op, "window", window, 1, 2**31 - 1, "tokens on a side")
    check.in_range(op, "grid_width", grid_width, 0, 2**31 - 1, "tokens in a row of the grid; 0: windows of a sequence")
    length = check.span(op, n, span_start, span_len, None, 0, ref)
    if grid_width == 0:
        if window_width != 0:
            check.fail(ValueError, op, "window_width", window_width, "0 without grid_width, which makes windows 2-D")
        found = Windows(span_start, length, 1, window, 1)
    else:
        check.in_range(op, "window_width", window_width, 0, 2**31 - 1, "tokens on a side; 0: as `window`")
        if length % grid_width != 0:
            check.fail(ValueError, op, "grid_width", f"{grid_width}, with a span of {length} tokens",
                       "a divisor of the length of the span")
        found = Windows(span_start, length // grid_width, grid_width, window,
                        window if window_width == 0 else window_width)
    if not ceil:
        _divides(op, "window", found.height, found.rows)
        _divides(op, "window_width" if window_width else "window", found.width, found.columns)
    return found


def _divides(op: str, arg: str, window: Any, size: Any) -> None:
    if size % window != 0:
        check.fail(ValueError, op, arg, f"{window}, with {size} tokens on that side",
                   "a divisor of them, or ceil=True for smaller windows at the end")
