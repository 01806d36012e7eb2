"""Select an exact number of tokens per row, with a minimum per segment (frame, tile, image)."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.select_quota.default


def select_quota(scores: Tensor, cu_segments: Tensor, k: int, quota: int, *, largest: bool = True,
                 protected: Tensor | None = None, excluded: Tensor | None = None, order: str = "index") -> Tensor:
    """Take the best `quota` tokens of every segment, then the best of all that are left, k in all.

    Args:
        scores: `[B, N]` float32, any strides.
        cu_segments: `[S + 1]` int32 on the device: segment s of every row is `cu_segments[s] .. cu_segments[s + 1]`.
            Tokens before the first and after the last bound compete only for what the quotas leave.
        k: how many to select, 0 <= k <= N.
        quota: at most k // S; a shorter segment gives all that it has.
        largest: keep the largest scores (default) or the smallest.
        protected: `[B, N]` bool: these come before all others, within their segment and then in the remainder.
        excluded: `[B, N]` bool: these are never selected.
        order: `"index"`: ascending positions. `"score"`: the best first, protected ones before all others.

    Returns:
        `[B, k]` int64 positions, distinct and valid: exactly k, and -1 at the end where fewer are not excluded.

    Ties and NaN as in `select_topk`. Bounds that decrease or leave 0 .. N are clamped, which
    `torch.ops.vtkernels.select_quota.out` reports in its `status` word.

    Raises:
        TypeError: scores that are not dense float32, masks that are not bool, bounds that are not int32.
        ValueError: k outside 0 to N, a quota above k // S, shapes that do not fit, or an unknown order.
        RuntimeError: the same from the native backends, or scores that require a gradient.

    Example:
        >>> scores = torch.tensor([[0.9, 0.8, 0.7, 0.1, 0.2, 0.3]])
        >>> frames = torch.tensor([0, 3, 6], dtype=torch.int32)
        >>> vtkernels.select_quota(scores, frames, 3, 1)
        tensor([[0, 1, 5]])
    """
    no_grad_needed("select_quota", scores=scores)
    return _op(scores, cu_segments, k, quota, largest=largest, protected=protected, excluded=excluded, order=order)
