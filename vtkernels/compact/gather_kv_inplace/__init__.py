"""Move the kept rows of the K and V caches to the front of the caches themselves."""

from collections.abc import Sequence

from torch import Tensor

from ..._checks import kv_token_dim, no_grad_needed
from ..._library import OPS

_op = OPS.gather_kv_inplace.default


def gather_kv_inplace(kv: Sequence[Tensor], indices: Tensor, *, kv_layout: str = "HND") -> list[Tensor]:
    """Move the kept tokens to the front of K and V of any number of layers, in one launch where the backend allows.

    Changes `kv`: token j becomes token `indices[j]` for all j < k; tokens from k on stay as they are. No second cache
    is needed, because each (tensor, batch, head) is walked in order and a token only ever moves towards the front.

    Args:
        kv: caches as for `gather_kv`: `[B, H, N, d]` (`"HND"`) or `[B, N, H, d]` (`"NHD"`), any dtype and strides, but
            each element in memory of its own.
        indices: `[B, k]`, `[B, H, k]` or `[L, B, H, k]` int32 or int64, as for `gather_kv`, k <= N, ascending. H of
            the indices may be 1.
        kv_layout: `"HND"` or `"NHD"`.

    Returns:
        The first k tokens of each cache, as views of `kv`.

    An index `i` of place j moves a token when j <= i < N, as every index of an ascending list does. Any other one (a
    token that has been overwritten by then, a -1 that pads) zero-fills its place, never a wild access;
    `torch.ops.vtkernels.gather_kv_inplace.out` also reports it in a `status` word.

    Raises:
        TypeError: indices that are not int32 or int64, or a cache that is not dense.
        ValueError: B, N, heads or devices that differ, k > N, an unknown layout, an expanded cache or one given twice.
        RuntimeError: the same from the native backends, or a cache that requires a gradient.

    Example:
        >>> cache = torch.arange(5.0).view(1, 1, 5, 1)
        >>> vtkernels.gather_kv_inplace([cache], torch.tensor([[1, 2, 4]]))[0].flatten()
        tensor([1., 2., 4.])
        >>> cache.flatten()
        tensor([1., 2., 4., 3., 4.])
    """
    no_grad_needed("gather_kv_inplace", kv=kv)
    _op(kv, indices, kv_layout=kv_layout)
    token_dim = kv_token_dim("gather_kv_inplace", kv_layout)
    return [t.narrow(token_dim, 0, indices.shape[-1]) for t in kv]
