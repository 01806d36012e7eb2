"""Select an exact number of tokens per row."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.select_topk.default


def select_topk(scores: Tensor, k: int, *, largest: bool = True, ks: Tensor | None = None,
                protected: Tensor | None = None, excluded: Tensor | None = None, order: str = "index") -> Tensor:
    """Positions of the k best scores of each row.

    Args:
        scores: `[B, N]` float32, any strides.
        k: how many to select, 0 <= k <= N. A host number, so the output shape is static.
        largest: keep the largest scores (default) or the smallest.
        ks: `[B]` int32 on the device: how many of its k each row really selects, clamped to 0 .. k.
        protected: `[B, N]` bool: these come before all others, the best of them first where they are more than k.
        excluded: `[B, N]` bool: these are never selected, protected or not.
        order: `"index"`: ascending positions. `"score"`: the best first, protected ones before all others.

    Returns:
        `[B, k]` int64 positions, distinct and valid. A row that selects fewer, because of `ks` or because too many of
        its tokens are excluded, ends with -1.

    Ties and NaN: equal scores prefer the lower position; -0 equals +0; NaN ranks last whatever the direction. The
    selection compares integers, so every backend gives the same positions for scores that are equal bit for bit.

    Raises:
        TypeError: scores that are not dense float32, or masks that are not bool.
        ValueError: k outside 0 to N, scores that are not 2-D, masks of another shape, or an unknown order.
        RuntimeError: the same from the native backends, or scores that require a gradient.

    Example:
        >>> scores = torch.tensor([[0.1, 0.9, 0.9, float("nan")]])
        >>> vtkernels.select_topk(scores, 2)
        tensor([[1, 2]])
        >>> first = torch.tensor([[True, False, False, False]])
        >>> vtkernels.select_topk(scores, 3, ks=torch.tensor([2], dtype=torch.int32), protected=first, order="score")
        tensor([[ 0,  1, -1]])
    """
    no_grad_needed("select_topk", scores=scores)
    return _op(scores, k, largest=largest, ks=ks, protected=protected, excluded=excluded, order=order)
