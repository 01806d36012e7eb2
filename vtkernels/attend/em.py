"""Expectation-maximisation attention: a few bases that explain all tokens, in library products."""

import torch
from torch import Tensor


def em_attention(tokens: Tensor, bases: Tensor, *, iterations: int = 3) -> tuple[Tensor, Tensor]:
    """Fit unit bases to the tokens by soft assignment, and rebuild the tokens from them.

    Each iteration: `z = softmax_k(tokens @ bases^T)`, `bases = normalise(sum_n z[n, k] tokens[n] / sum_n z[n, k])`.
    What the bases cannot rebuild, `tokens - rebuilt`, is what sets a token apart from its context. Two library products
    per iteration; a kernel of our own would not beat them, so this is a composition and not an op.

    Args:
        tokens: `[B, N, D]`, a floating dtype.
        bases: `[B, K, D]` or `[K, D]`, rows of unit norm to start from.
        iterations: how often the bases are fitted; 0 only rebuilds.

    Returns:
        rebuilt: `[B, N, D]`, dtype of `tokens`: `z @ bases` of the last bases.
        bases: `[B, K, D]` float32.

    Sums are in float32. Gradients flow through the last step only; the fitting runs without them, as published.

    Raises:
        ValueError: shapes that do not fit, or a negative number of iterations.

    Example:
        >>> bases = torch.nn.functional.normalize(torch.randn(4, 16), dim=-1)
        >>> rebuilt, fitted = vtkernels.attend.em_attention(torch.randn(2, 50, 16), bases)
        >>> rebuilt.shape, fitted.shape
        (torch.Size([2, 50, 16]), torch.Size([2, 4, 16]))

    Source: EMANet (ICCV 2019), as the contextual attention of DistinctAD (CVPR 2025) uses it.
    """
    if tokens.dim() != 3 or bases.dim() not in (2, 3) or bases.shape[-1] != tokens.shape[-1] or (
            bases.dim() == 3 and bases.shape[0] != tokens.shape[0]):
        raise ValueError(f"em_attention: `bases` is of shape {tuple(bases.shape)}, allowed: [K, D] or [B, K, D] for "
                         f"tokens {tuple(tokens.shape)}")
    if iterations < 0:
        raise ValueError(f"em_attention: `iterations` is {iterations}, allowed: 0 or more")
    x = tokens.float()
    fitted = bases.float().expand(tokens.shape[0], -1, -1)
    with torch.no_grad():
        for _ in range(iterations):
            share = (x @ fitted.mT).softmax(-1)
            means = (share.mT @ x) / share.sum(1)[..., None]
            fitted = torch.nn.functional.normalize(means, dim=-1)
    rebuilt = (x @ fitted.mT).softmax(-1) @ fitted
    return rebuilt.to(tokens.dtype), fitted.contiguous()
