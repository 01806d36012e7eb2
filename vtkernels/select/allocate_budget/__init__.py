"""Split a number of tokens over frames, layers or heads."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.allocate_budget.default


def allocate_budget(weights: Tensor, total: int, *, minimum: int = 0, capacity: Tensor | None = None) -> Tensor:
    """Split `total` over S segments in proportion to their weights, so that the parts add up exactly.

    Args:
        weights: `[B, S]` float32, any strides. NaN and what is not above 0 weigh nothing; in a row with +inf only the
            infinities weigh, all the same; a row where nothing weighs is split equally.
        total: tokens of all S segments of a row.
        minimum: every segment gets this many first, S * minimum <= total.
        capacity: `[B, S]` int32: no segment gets more (nor its minimum); what does not fit goes to the others.

    Returns:
        `[B, S]` int32. Each row adds up to `total`, or to its capacities where these add up to less.

    The rest, `total - S * minimum`, is split by largest remainder. With e the exponent of the row's largest weight (at
    least -126) a weight counts `q = trunc(w * 2**(30 - e))`; a segment gets `floor(q * rest / sum(q))`, and what is
    left goes one by one to the largest remainders, equal ones in order of position. With `capacity`, segments whose
    share is over theirs are filled, and the whole rest is split anew among the others, until none is over. Integers
    only: all backends agree bit for bit.

    Raises:
        TypeError: weights that are not dense float32, or a capacity that is not int32.
        ValueError: a total outside 0 to 2**31 - 1 (0 with S = 0), a minimum above total // S, shapes that do not fit.
        RuntimeError: the same from the native backends, or weights that require a gradient.

    Example:
        >>> weights = torch.tensor([[1.0, 1.0, 2.0]])
        >>> vtkernels.allocate_budget(weights, 10)
        tensor([[3, 2, 5]], dtype=torch.int32)
        >>> vtkernels.allocate_budget(weights, 10, capacity=torch.tensor([[9, 9, 4]], dtype=torch.int32))
        tensor([[3, 3, 4]], dtype=torch.int32)

    Counting rules of methods, composed of this op: `vtkernels.select.counting`.
    """
    no_grad_needed("allocate_budget", weights=weights)
    return _op(weights, total, minimum=minimum, capacity=capacity)
