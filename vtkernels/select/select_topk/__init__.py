"""Select an exact number of tokens per row."""

import torch
from torch import Tensor

from ... import _library  # noqa: F401  (the schema must exist before the op is bound)
from ..._checks import no_grad_needed

_op = torch.ops.vtkernels.select_topk.default


def select_topk(scores: Tensor, k: int, *, largest: bool = True) -> Tensor:
    """Positions of the k best scores of each row, in ascending order.

    Args:
        scores: `[B, N]` float32, any strides.
        k: how many to select, 0 <= k <= N. A host number, so the output shape is static.
        largest: keep the largest scores (default) or the smallest.

    Returns:
        `[B, k]` int64 positions, ascending in each row, all distinct and valid.

    Ties and NaN: equal scores prefer the lower position; -0 equals +0; NaN ranks last whatever the direction. The
    selection compares integers, so every backend gives the same positions for scores that are equal bit for bit.

    Raises:
        TypeError: scores that are not dense float32.
        ValueError: k outside 0 to N, or scores that are not 2-D.
        RuntimeError: the same from the native backends, or scores that require a gradient.

    Example:
        >>> vtkernels.select_topk(torch.tensor([[0.1, 0.9, 0.9, float("nan")]]), 2)
        tensor([[1, 2]])
    """
    no_grad_needed("select_topk", scores=scores)
    return _op(scores, k, largest=largest)
