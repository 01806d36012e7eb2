"""An orthonormal basis of a few directions of a set of keys."""

import torch
from torch import Tensor

from ..._checks import choice, floating, in_range, rank


def orthonormal_basis(keys: Tensor, r: int, *, method: str = "first") -> Tensor:
    """Orthonormal rows that span r directions of each set of keys, for `subspace_residual`.

    Args:
        keys: `[B, n, d]`, float32, float16 or bfloat16.
        r: number of directions, at least 0. No more than min(n, d) come out.
        method: `"first"`: the span of the first r keys, by an unpivoted QR, which is what the released code of GUI-KV
            does (its QR of all keys spans the same). `"svd"`: the r right singular directions of the largest singular
            values, the best subspace of that size in the least-squares sense.

    Returns:
        `[B, min(r, n, d), d]`, dtype of `keys`; computed in float32.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: keys that are not 3-D, a negative r, an unknown method.

    Example:
        >>> vtkernels.orthonormal_basis(torch.tensor([[[0.0, 2.0], [3.0, 1.0]]]), 1).abs()
        tensor([[[0., 1.]]])
    """
    op = "orthonormal_basis"
    floating(op, "keys", keys)
    rank(op, "keys", keys, "B, n, d")
    in_range(op, "r", r, 0, 2**31 - 1, "directions")
    choice(op, "method", method, ("first", "svd"))
    batch, n, d = keys.shape
    r = min(r, n, d)
    if r == 0 or batch == 0:
        return keys.new_empty(batch, r, d)
    if method == "first":
        basis = torch.linalg.qr(keys[:, :r].float().mT).Q.mT
    else:
        basis = torch.linalg.svd(keys.float(), full_matrices=False).Vh[:, :r]
    return basis.to(keys.dtype).contiguous()
