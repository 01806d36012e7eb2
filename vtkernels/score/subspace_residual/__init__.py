"""Score tokens by the part of them outside a subspace."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS
from .basis import orthonormal_basis

__all__ = ["orthonormal_basis", "subspace_residual"]

_op = OPS.subspace_residual.default


def subspace_residual(tokens: Tensor, basis: Tensor) -> Tensor:
    """Norm of what is left of each token after its projection onto a subspace: `|x - B^T B x|`.

    Args:
        tokens: `[B, N, d]`, float32, float16 or bfloat16, any strides. Heads go into B: `keys.flatten(0, 1)`.
        basis: `[B, r, d]`, dtype and device of `tokens`, any strides, r >= 0: orthonormal rows, one subspace for each
            B. `vtkernels.orthonormal_basis` makes them. Rows that are not orthonormal are used as they are.

    Returns:
        `[B, N]` float32. With r = 0 it is the norm of the token.

    Numbers: everything in float32. The residual is formed element by element and not from a difference of squared
    norms, so it keeps its digits where a token lies almost in the subspace. A token with a NaN or an infinity has the
    residual NaN (with r = 0, its norm). Near the ends of the range of float32 the sums overflow or vanish unscaled. A
    token's result does not depend on other tokens, and repeats bitwise on one device and configuration.

    Raises:
        TypeError: a dtype or layout that is not allowed, or dtypes that differ.
        ValueError: shapes or devices that do not fit.
        RuntimeError: the same from the native backends, or an input that requires a gradient.

    Example:
        >>> basis = torch.tensor([[[1.0, 0.0, 0.0]]])
        >>> vtkernels.subspace_residual(torch.tensor([[[7.0, 3.0, 4.0], [7.0, 0.0, 0.0]]]), basis)
        tensor([[5., 0.]])

    Source: the spatio-temporal redundancy of GUI-KV (arXiv 2510.00536).
    """
    no_grad_needed("subspace_residual", tokens=tokens, basis=basis)
    return _op(tokens, basis)
