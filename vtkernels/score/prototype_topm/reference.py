"""Plain torch, any device: the readable truth. Materialises [.., P], which no other backend does."""

import torch
from torch import Tensor

from ..prototype_scores.reference import finish, similarities


def prototype_topm(tokens: Tensor, prototypes: Tensor, m: int, *, metric: str = "cosine",
                   prototype_rnorm: Tensor | None = None) -> tuple[Tensor, Tensor]:
    similarity = similarities(tokens, prototypes, metric, prototype_rnorm) + 0.0
    order = torch.where(similarity.isnan(), -torch.inf, similarity).sort(dim=-1, descending=True, stable=True).indices
    is_nan = similarity.isnan().gather(-1, order)
    order = order.gather(-1, is_nan.byte().sort(dim=-1, stable=True).indices)[..., :m]  # NaN after -inf
    best = similarity.gather(-1, order)
    return finish(best, tokens[..., None, :], metric), order.contiguous()
