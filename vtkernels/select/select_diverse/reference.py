"""Plain torch, any device, one image and one pick after the other, on the whole similarity matrix."""

import torch
from torch import Tensor

from ..._library import STATUS_BAD_INDEX
from ...score.prototype_scores.reference import reciprocal_norms
from ..select_topk.reference import selection_keys


def cosine_similarity(features: Tensor) -> Tensor:
    """[N, N] fp32, 0 with a token of zero norm, NaN with one whose norm is NaN or too large for fp32."""
    x = features.float()
    rnorm = reciprocal_norms(x)
    return x @ x.mT * (rnorm[:, None] * rnorm)


def best(values: Tensor, order: list[int]) -> int:
    """The largest value that is not picked yet, NaN last, the lowest index among equals."""
    keys = selection_keys(values, largest=True)
    keys[order] = -1
    return int(keys.argmax())


def pick_by_distance(similarity: Tensor, k: int, objective: str, seeds: list[int]) -> list[int]:
    without_norm = similarity.diagonal().isnan()
    nothing, combine = (torch.inf, torch.minimum) if objective == "max_min" else (0.0, torch.add)
    distance = (1 - similarity).nan_to_num(nan=nothing, posinf=torch.inf, neginf=-torch.inf)
    distance.fill_diagonal_(nothing)
    value = distance.amin(-1) if objective == "max_min" else distance.sum(-1)  # for the first pick: to all others
    so_far = torch.full_like(value, nothing)
    order = list(seeds)
    for token in order:
        so_far = combine(so_far, distance[token])
    while len(order) < k:
        token = best((so_far if order else value).masked_fill(without_norm, torch.nan), order)
        order.append(token)
        so_far = combine(so_far, distance[token])
    return order


def pick_by_determinant(similarity: Tensor, k: int, relevance: Tensor | None) -> list[int]:
    """Greedy MAP: `gain` is what is left of each diagonal entry, `factors` the rows of the Cholesky factor."""
    n = similarity.shape[0]
    kernel = similarity if relevance is None else relevance[:, None] * similarity * relevance
    gain = kernel.diagonal().clone()
    factors = kernel.new_zeros(k, n)
    order: list[int] = []
    while len(order) < k:
        token = best(gain, order)
        if not gain[token] > 0:
            return order + [i for i in range(n) if i not in order][:k - len(order)]
        before = factors[:len(order)]
        factor = (kernel[token] - before[:, token] @ before) / gain[token].sqrt()
        factors[len(order)] = factor
        gain = gain - factor.square()
        order.append(token)
    return order


def select_diverse(features: Tensor, k: int, *, objective: str = "max_min", relevance: Tensor | None = None,
                   seeds: Tensor | None = None, status: Tensor | None = None) -> tuple[Tensor, Tensor]:
    batch, n, _ = features.shape
    order = torch.empty(batch, k, dtype=torch.int64, device=features.device)
    for b in range(batch if k else 0):
        similarity = cosine_similarity(features[b])
        if objective == "dpp":
            picks = pick_by_determinant(similarity, k, None if relevance is None else relevance[b])
        else:
            given = [] if seeds is None else seeds[b].tolist()
            valid = list(dict.fromkeys(s for s in given if 0 <= s < n))
            if status is not None and len(valid) < len(given):
                status.bitwise_or_(STATUS_BAD_INDEX)
            picks = pick_by_distance(similarity, k, objective, valid)
        order[b] = torch.tensor(picks, device=features.device)
    return order, order.sort(-1).values
