"""Move the kept rows of many token-aligned tensors."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..._checks import not_nested
from ..._library import OPS
from .._autograd import gather_with_grad, wants_grad

_op = OPS.gather_tokens.default


def gather_tokens(tensors: Sequence[Tensor], indices: Tensor, *,
                  token_dims: Sequence[int] | None = None) -> list[Tensor]:
    """Gather the same tokens from any number of aligned tensors, in one launch where the backend allows.

    Args:
        tensors: each with a batch dimension and, right after it, a token dimension: hidden states `[B, N, D]`,
            position ids `[B, N]` or `[3, B, N]`, cos/sin `[B, N, d]`. Any dtype (moved byte for byte), any strides.
        indices: `[B, k]` int32 or int64 positions in the row.
        token_dims: the token dimension of each tensor; 1 for all when absent. The batch dimension stands before it.

    Returns:
        One tensor for each input, with k in place of N, contiguous.

    A position outside its row gives a zero-filled row, never a wild access; `torch.ops.vtkernels.gather_tokens.out`
    also reports it in a `status` word. Gradients flow to floating inputs (a scatter-add in the backward pass).

    Raises:
        TypeError: indices that are not int32 or int64, or a tensor that is not dense.
        ValueError: B, N or devices that differ.
        RuntimeError: the same from the native backends.

    Example:
        >>> hidden, ids = torch.randn(1, 8, 4), torch.arange(8)[None]
        >>> vtkernels.gather_tokens([hidden, ids], torch.tensor([[1, 5]]))[1]
        tensor([[1, 5]])
    """
    not_nested("gather_tokens", tensors=tensors)
    dims = [1] * len(tensors) if token_dims is None else list(token_dims)
    if wants_grad(tensors):
        return gather_with_grad(_run, tensors, indices, dims)
    return _op(tensors, indices, token_dims=dims)


def _run(tensors: Sequence[Tensor], indices: Tensor, dims: Sequence[int]) -> Any:
    return _op(tensors, indices, token_dims=dims)
