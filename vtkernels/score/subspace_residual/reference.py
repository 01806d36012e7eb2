"""Plain torch, any device: the readable truth."""

from torch import Tensor


def subspace_residual(tokens: Tensor, basis: Tensor) -> Tensor:
    x, b = tokens.float(), basis.float()
    residual = x - (x @ b.mT) @ b
    return residual.square().sum(-1).sqrt()
