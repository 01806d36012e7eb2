"""Plain torch, any device: the readable truth. Materialises [B, N, P], which no other backend does."""

from torch import Tensor

from ..prototype_scores.reference import reciprocal_norms, similarities


def prototype_softmax_scores(tokens: Tensor, prototypes: Tensor, *, over_tokens: bool = False,
                             prototype_rnorm: Tensor | None = None) -> Tensor:
    cosine = similarities(tokens, prototypes, "cosine", prototype_rnorm) * reciprocal_norms(tokens)[..., None]
    e = cosine.exp()
    weights = e / e.sum(-1, keepdim=True)
    if over_tokens:
        weights = weights * (e / e.sum(-2, keepdim=True))
    return weights.amax(-1)
