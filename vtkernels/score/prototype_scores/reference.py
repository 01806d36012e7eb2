"""Plain torch, any device: the readable truth. Materialises [.., P], which no other backend does."""

import torch
from torch import Tensor

FLT_MIN = torch.finfo(torch.float32).tiny


def reciprocal_norms(x: Tensor) -> Tensor:
    """1 / L2 norm over the last dimension, fp32: 0 for a zero norm, NaN for one that fp32 cannot hold."""
    squares = x.float().square().sum(-1)
    rnorm = torch.where(squares < FLT_MIN, 0.0, squares.rsqrt())
    return torch.where(squares.isfinite(), rnorm, torch.nan)


def similarities(tokens: Tensor, prototypes: Tensor, metric: str, prototype_rnorm: Tensor | None) -> Tensor:
    """[.., P]: what decides which prototype is nearest; the norm of the token, which they share, is left out."""
    x, p = tokens.float(), prototypes.float()
    grouped = prototypes.dim() == 3
    products = (x[..., None, :] @ p.mT)[..., 0, :] if grouped else x @ p.T  # [.., G, 1, d] @ [G, d, P]
    if metric == "cosine":
        return products * (reciprocal_norms(p) if prototype_rnorm is None else prototype_rnorm)
    return products - 0.5 * p.square().sum(-1) if metric == "l2" else products


def finish(best: Tensor, tokens: Tensor, metric: str) -> Tensor:
    """The scores of similarities of tokens [.., D]."""
    if metric == "cosine":
        best = best * reciprocal_norms(tokens)
    elif metric == "l2":
        best = 2 * best - tokens.float().square().sum(-1)
        best = torch.where(best > 0, 0.0, best)
    return best + 0.0  # turns -0 into +0


def prototype_scores(tokens: Tensor, prototypes: Tensor, *, metric: str = "cosine",
                     prototype_rnorm: Tensor | None = None) -> tuple[Tensor, Tensor]:
    similarity = similarities(tokens, prototypes, metric, prototype_rnorm)
    best = similarity.amax(-1)  # NaN if any similarity is NaN
    hit = (similarity == best[..., None]) | similarity.isnan()
    count = prototypes.shape[-2]
    argmax = torch.where(hit, torch.arange(count, device=tokens.device), count).amin(-1)
    return finish(best, tokens, metric), argmax
