"""Select the tokens on one side of a threshold."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.select_threshold.default


def select_threshold(scores: Tensor, threshold: float, *, largest: bool = True, min_keep: int = 0,
                     thresholds: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the scores strictly above (or below) a threshold. The counts stay on the device.

    Args:
        scores: `[B, N]` float32, any strides.
        threshold: one for all rows, rounded to float32; it may be infinite.
        largest: keep scores above the threshold (default), or below it.
        min_keep: at least this many per row, 0 <= min_keep <= N: where fewer pass, the best `min_keep` by the order of
            `select_topk` instead.
        thresholds: `[B]` float32 on the device, one per row in place of `threshold`. Nothing passes a NaN.

    Returns:
        indices `[B, N]` int64, ascending in each row, then -1; counts `[B]` int32; cu_seqlens `[B + 1]` int32, the sums
        of the counts before each row. No host synchronisation.

    NaN scores never pass; a score equal to the threshold does not pass; -0 equals +0.

    Raises:
        TypeError: scores or thresholds that are not dense float32.
        ValueError: a threshold of NaN, min_keep outside 0 to N, or shapes that do not fit.
        RuntimeError: the same from the native backends, or scores that require a gradient.

    Example:
        >>> scores = torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.1, 0.3]])
        >>> vtkernels.select_threshold(scores, 0.4, min_keep=1)
        (tensor([[ 1,  2, -1],
                [ 2, -1, -1]]), tensor([2, 1], dtype=torch.int32), tensor([0, 2, 3], dtype=torch.int32))
    """
    no_grad_needed("select_threshold", scores=scores)
    return _op(scores, threshold, largest=largest, min_keep=min_keep, thresholds=thresholds)
