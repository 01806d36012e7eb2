"""Plain torch, any device: the readable truth. Materialises [.., P], which no other backend does."""

import torch
from torch import Tensor

FLT_MIN = torch.finfo(torch.float32).tiny


def reciprocal_norms(x: Tensor) -> Tensor:
    """1 / L2 norm over the last dimension, fp32: 0 for a zero norm, NaN for one that fp32 cannot hold."""
    squares = x.float().square().sum(-1)
    rnorm = torch.where(squares < FLT_MIN, 0.0, squares.rsqrt())
    return torch.where(squares.isfinite(), rnorm, torch.nan)


def prototype_scores(tokens: Tensor, prototypes: Tensor, *, metric: str = "cosine",
                     prototype_rnorm: Tensor | None = None) -> tuple[Tensor, Tensor]:
    similarity = tokens.float() @ prototypes.float().T  # [.., P]
    if metric == "cosine":
        similarity = similarity * (reciprocal_norms(prototypes) if prototype_rnorm is None else prototype_rnorm)
    best = similarity.amax(-1)  # NaN if any similarity is NaN
    hit = (similarity == best[..., None]) | similarity.isnan()
    count = prototypes.shape[0]
    argmax = torch.where(hit, torch.arange(count, device=tokens.device), count).amin(-1)
    if metric == "cosine":
        best = best * reciprocal_norms(tokens)
    return best + 0.0, argmax  # + 0.0 turns -0 into +0
