"""Attention that takes the one best key."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.argmax_attention.default


def argmax_attention(query: Tensor, key: Tensor, *, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The key with the largest product for each query and head. Never stores queries x keys.

    Args:
        query: `[B, H, Q, d]`, float32, float16 or bfloat16, any strides.
        key: `[B, H, N, d]`, dtype and device of `query`, any strides.
        allowed: `[B, Q, N]` bool, the keys that a query may take, for all heads; all when absent.

    Returns:
        out: `[B, H, Q, d]`, dtype of `query`: the chosen key, bit for bit; zeros where no key is allowed.
        indices: `[B, H, Q]` int64: its position; ties go to the lowest, a NaN product is taken only when all allowed
            ones are NaN, and -1 stands where no key is allowed.

    Products and sums are in float32. Products of bfloat16 numbers under the smallest normal one may count as zero, as
    the instructions of some processors have it.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes or devices that do not fit.
        RuntimeError: the same from the native backends, or an input that requires a gradient.

    Example:
        >>> out, indices = vtkernels.argmax_attention(torch.randn(1, 8, 100, 32), torch.randn(1, 8, 4096, 32))
        >>> out.shape, indices.shape
        (torch.Size([1, 8, 100, 32]), torch.Size([1, 8, 100]))

    Source: the prototype selection of PEM (CVPR 2024), where a query without an allowed key takes key 0.
    """
    no_grad_needed("argmax_attention", query=query, key=key)
    return _op(query, key, allowed=allowed)
