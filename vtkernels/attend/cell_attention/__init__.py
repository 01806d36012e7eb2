"""Attention of one query per cell of a grid to the keys of that cell."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.cell_attention.default


def cell_attention(query: Tensor, key: Tensor, value: Tensor, grid_width: int, cell: int, *,
                   scale: float | None = None) -> Tensor:
    """Each query attends to the `cell * cell` keys of its own cell, in one pass over keys and values, without copies.

    Args:
        query: `[B, H, cells, d]`, float32, float16 or bfloat16, one query per cell, cells in raster order.
        key, value: `[B, H, N, d]`, dtype and device of `query`, N = cells x cell x cell tokens in raster order on a
            grid of `grid_width` columns. Any strides, so a transposed `[B, N, H, d]` costs nothing.
        grid_width: columns of the grid of keys, a multiple of `cell`.
        cell: side of a cell, 1 to 64.
        scale: factor of the products; `1 / sqrt(d)` when absent.

    Returns:
        `[B, H, cells, d]`, dtype of `query`: `softmax_j(scale * <q, k_j>) @ v` over the keys j of the cell.

    Products, softmax and sums are in float32; a NaN or an infinity among the logits of a cell gives what IEEE
    arithmetic gives for that cell alone.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes or devices that do not fit, a grid that does not divide into cells.
        RuntimeError: the same from the native backends, or an input that requires a gradient.

    Example:
        >>> query, keys = torch.randn(1, 8, 144, 128), torch.randn(1, 8, 576, 128)
        >>> vtkernels.cell_attention(query, keys, keys, 24, 2).shape
        torch.Size([1, 8, 144, 128])

    Source: the region-to-point attention of TokenPacker (IJCV 2025).
    """
    no_grad_needed("cell_attention", query=query, key=key, value=value)
    return _op(query, key, value, grid_width, cell, scale=scale)
