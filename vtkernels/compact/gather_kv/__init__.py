"""Move the kept rows of the K and V caches of one or all layers."""

from collections.abc import Sequence

from torch import Tensor

from ..._checks import kv_token_dim, not_nested
from ..._library import OPS
from .._autograd import gather_with_grad, wants_grad

_op = OPS.gather_kv.default


def gather_kv(kv: Sequence[Tensor], indices: Tensor, *, kv_layout: str = "HND") -> list[Tensor]:
    """Gather the kept tokens from K and V of any number of layers, in one launch where the backend allows.

    Args:
        kv: caches, each `[B, H, N, d]` (`"HND"`) or `[B, N, H, d]` (`"NHD"`). H, d and dtype may differ from cache to
            cache; any dtype, moved byte for byte; any strides.
        indices: int32 or int64 positions in the row: `[B, k]`, shared by all caches and heads; `[B, H, k]`, for each
            key head (SnapKV, GUI-KV); or `[L, B, H, k]`, for each of the L tensors of `kv` as well (ScaleKV's layers:
            repeat a layer's entry for its K and its V). H of the indices may be 1: shared by the heads.
        kv_layout: `"HND"` or `"NHD"`.

    Returns:
        One cache for each input, with k tokens, contiguous.

    A position outside its row, such as a -1 that pads, gives a zero-filled row, never a wild access;
    `torch.ops.vtkernels.gather_kv.out` also reports it in a `status` word. Gradients flow to floating caches.
    `gather_kv_inplace` needs no second cache; `rotate_keys` gives the keys new positions.

    Raises:
        TypeError: indices that are not int32 or int64, or a cache that is not dense.
        ValueError: B, N, heads or devices that differ, an unknown layout.
        RuntimeError: the same from the native backends.

    Example:
        >>> k, v = torch.randn(2, 1, 8, 576, 64)
        >>> [t.shape[2] for t in vtkernels.gather_kv([k, v], torch.arange(0, 576, 4)[None])]
        [144, 144]
        >>> per_head = vtkernels.select_topk(torch.rand(8, 576), 100)[None]
        >>> vtkernels.gather_kv([k, v], per_head)[0].shape
        torch.Size([1, 8, 100, 64])
    """
    not_nested("gather_kv", kv=kv)
    if wants_grad(kv):
        token_dim = kv_token_dim("gather_kv", kv_layout)
        dims = (0, token_dim) if indices.dim() == 2 else (0, 3 - token_dim, token_dim)
        return gather_with_grad(lambda caches, idx, _: _op(caches, idx, kv_layout=kv_layout), kv, indices,
                                [dims] * len(kv))
    return _op(kv, indices, kv_layout=kv_layout)
