"""Select the fewest tokens that hold a share of the total weight."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.select_top_p.default


def select_top_p(scores: Tensor, p: float, *, min_keep: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the smallest set of best scores whose sum is at least p of the row's sum.

    Args:
        scores: `[B, N]` float32 weights such as attention probabilities, any strides. They need not add up to 1.
        p: 0 < p <= 1.
        min_keep: at least this many per row.

    Returns:
        indices `[B, N]` int64, ascending in each row, then -1; counts `[B]` int32; cu_seqlens `[B + 1]` int32, the sums
        of the counts before each row. No host synchronisation.

    The sums are exact, so all backends agree bit for bit. With e the exponent of the row's largest score (at least
    -126), a score w counts `q = trunc(w * 2**(30 - e))`; p counts `P = floor(p * 2**31)` units, at least 1; the set is
    the shortest prefix, best first, whose q add up to `ceil(sum(q) * P / 2**31)` or more. NaN and scores that are not
    above 0 count 0; in a row with +inf every +inf counts 1 and everything else 0. A row that counts 0 in all keeps its
    `min_keep` best. Order and ties are those of `select_topk`: equal scores prefer the lower position, NaN last.

    Raises:
        TypeError: scores that are not dense float32.
        ValueError: p outside (0, 1], min_keep outside 0 to N, or scores that are not 2-D.
        RuntimeError: the same from the native backends, or scores that require a gradient.

    Example:
        >>> scores = torch.tensor([[0.1, 0.5, 0.3, 0.1]])
        >>> vtkernels.select_top_p(scores, 0.8)
        (tensor([[ 1,  2, -1, -1]]), tensor([2], dtype=torch.int32), tensor([0, 2], dtype=torch.int32))

    Source: nucleus sampling (arXiv 1904.09751), used to choose a token budget by ZipVL (arXiv 2410.08584).
    """
    no_grad_needed("select_top_p", scores=scores)
    return _op(scores, p, min_keep=min_keep)
