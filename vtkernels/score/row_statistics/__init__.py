"""Norms and entropy of rows, in one pass."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.row_statistics.default


def row_statistics(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L1 norm, L2 norm and entropy of each row, from one read of the data.

    Args:
        rows: `[.., D]`, float32, float16 or bfloat16, any strides.

    Returns:
        l1: `[..]` float32, `sum |x|`.
        l2: `[..]` float32, `sqrt(sum x^2)`.
        entropy: `[..]` float32, in nats: that of the row as a distribution `p = max(x, 0) / sum max(x, 0)`, which is
            `-sum p ln p = ln S - (sum x ln x) / S` with `S` the sum of the positive elements. 0 for a row without
            positive elements, NaN for a row with a NaN or an infinity (or an l1 that overflows float32).

    Numbers: sums in float32. Elements under the smallest normal float32 count as zero in the entropy. The sums are not
    scaled: `l2` overflows to infinity, or vanishes, where the sum of squares does. A row's result does not depend on
    other rows, and repeats bitwise on one device and configuration.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: rows without a dimension.
        RuntimeError: the same from the native backends, or an input that requires a gradient.

    Example:
        >>> l1, l2, entropy = vtkernels.row_statistics(torch.tensor([[3.0, 0.0, -4.0], [2.0, 2.0, 0.0]]))
        >>> l1, l2, entropy
        (tensor([7., 4.]), tensor([5.0000, 2.8284]), tensor([0.0000, 0.6931]))

    Source: the L1 and entropy statistics of FlowCut (arXiv 2505.19536), the norms of GUI-KV (arXiv 2510.00536).
    """
    no_grad_needed("row_statistics", rows=rows)
    return _op(rows)
