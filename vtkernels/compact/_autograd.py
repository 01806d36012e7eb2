"""The gradients of gathers and shuffles, outside the ops, so that inference calls pay nothing for them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def wants_grad(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable, indices: Tensor, dims: Sequence[Any], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(indices)
        ctx.dims = dims
        ctx.shapes = [t.shape for t in tensors]
        ctx.mark_non_differentiable(*[t for t in tensors if not t.is_floating_point()])
        return tuple(run(tensors, indices, dims))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        (indices,) = ctx.saved_tensors
        result: list[Any] = [None, None, None]
        for i, (grad, shape) in enumerate(zip(grads, ctx.shapes, strict=True)):
            wanted = ctx.needs_input_grad[3 + i] and grad is not None
            own = indices[i] if indices.dim() == 4 else indices
            result.append(_scatter_rows(grad, own, shape, _row_dims(ctx.dims[i])) if wanted else None)
        return tuple(result)


def _row_dims(dim: Any) -> tuple[int, ...]:
    return dim if isinstance(dim, tuple) else (dim - 1, dim)


def _scatter_rows(grad: Any, indices: Tensor, shape: Sequence[int], dims: tuple[int, ...]) -> Tensor:
    """Sum the rows of `grad` back to the positions they came from; rows of invalid positions go nowhere.

    `dims` are those that `indices` run over: batch, heads where each has its own, tokens.
    """
    n, lead = shape[dims[-1]], len(dims) - 1
    rows = grad.movedim(dims, tuple(range(lead + 1)))  # [B, (H,) k, ..]
    indices = indices.expand(rows.shape[:lead + 1]).flatten(0, lead - 1)
    sizes, rows = rows.shape[:lead], rows.flatten(0, lead - 1)
    valid = (indices >= 0) & (indices < n)
    rows = torch.where(valid.view(*valid.shape, *[1] * (rows.dim() - 2)), rows, 0)
    total = rows.new_zeros((rows.shape[0], n, *rows.shape[2:]))
    if n:
        row = torch.arange(rows.shape[0], device=grad.device)[:, None].expand_as(indices)
        total.index_put_((row, indices.long().clamp(0, n - 1)), rows, accumulate=True)
    return total.unflatten(0, sizes).movedim(tuple(range(lead + 1)), dims)


def gather_with_grad(run: Callable, tensors: Sequence[Tensor], indices: Tensor, dims: Sequence[Any]) -> list[Tensor]:
    """`run(tensors, indices, dims)`, differentiable.

    A dim is the token dimension (batch before it), or the dimensions that the indices run over, batch to tokens.
    """
    return list(_Gather.apply(run, indices, dims, *tensors))


class _Shuffle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, there: Callable, back: Callable, tokens: Tensor, grid: dict[str, Any]) -> Tensor:
        ctx.back, ctx.grid = back, grid
        return there(tokens, **grid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None, ctx.back(grad, **ctx.grid), None


def shuffle_with_grad(there: Callable, back: Callable, tokens: Tensor, **grid: Any) -> Tensor:
    """`there(tokens, **grid)`, differentiable: the gradient goes `back`."""
    return _Shuffle.apply(there, back, tokens, grid)
