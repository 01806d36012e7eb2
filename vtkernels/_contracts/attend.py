"""Contracts of the attentions that no library has."""

import torch
from torch import Tensor

from .. import _checks as check
from .spec import Spec


def _check_heads(op: str, query: Tensor, dims: str, **others: Tensor) -> None:
    """Tensors [B, H, .., d] that share all but the third dimension with `query`."""
    check.floating(op, "query", query)
    check.rank(op, "query", query, dims)
    for arg, t in others.items():
        check.floating(op, arg, t)
        if t.dtype != query.dtype:
            check.fail(TypeError, op, arg, f"a tensor of {check.names([t.dtype])}",
                       f"the dtype of `query` ({check.names([query.dtype])})")
        check.rank(op, arg, t, "B, H, N, d")
        check.same_device(op, arg, t, "query", query)
        for dim, what in ((0, "B"), (1, "H"), (3, "d")):
            check.size(op, arg, t.shape[dim], query.shape[dim], what)


def cell_attention(query: Tensor, key: Tensor, value: Tensor, grid_width: int, cell: int, *,
                   scale: float | None = None) -> Spec:
    op = "cell_attention"
    _check_heads(op, query, "B, H, cells, d", key=key, value=value)
    cells = query.shape[2]
    check.in_range(op, "cell", cell, 1, 64, "side of a cell")
    check.in_range(op, "grid_width", grid_width, 1, 2**31 - 1, "columns of the grid of keys")
    if grid_width % cell:
        check.fail(ValueError, op, "grid_width", grid_width, f"a multiple of `cell` ({cell})")
    if cells % (grid_width // cell):
        check.fail(ValueError, op, "query", f"of {cells} cells", f"whole rows of {grid_width // cell} cells")
    for arg, t in (("key", key), ("value", value)):
        check.size(op, arg, t.shape[2], cells * cell * cell, "N (cells x cell x cell)")
    return Spec(tuple(query.shape), query.dtype, query.device)


def argmax_attention(query: Tensor, key: Tensor, *, allowed: Tensor | None = None) -> tuple[Spec, Spec]:
    op = "argmax_attention"
    _check_heads(op, query, "B, H, Q, d", key=key)
    batch, heads, rows, _ = query.shape
    if allowed is not None:
        check.dense(op, "allowed", allowed)
        if allowed.dtype != torch.bool:
            check.fail(TypeError, op, "allowed", f"a tensor of {check.names([allowed.dtype])}", "bool")
        if tuple(allowed.shape) != (batch, rows, key.shape[2]):
            check.fail(ValueError, op, "allowed", f"of shape {check.shape(allowed)}",
                       f"[B, Q, N], here {(batch, rows, key.shape[2])}")
        check.same_device(op, "allowed", allowed, "query", query)
    return (Spec(tuple(query.shape), query.dtype, query.device),
            Spec((batch, heads, rows), torch.int64, query.device))
