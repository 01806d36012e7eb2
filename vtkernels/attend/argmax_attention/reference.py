"""Plain torch, any device: all products, then the best allowed key of each query. Materialises [B, H, Q, N]."""

import torch
from torch import Tensor


def argmax_attention(query: Tensor, key: Tensor, *, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    n = key.shape[2]
    products = query.float() @ key.float().mT + 0.0
    everything = torch.ones_like(products, dtype=torch.bool)
    candidates = everything if allowed is None else allowed[:, None].expand_as(products)
    # Candidates before the others, numbers before NaN, then the value, then the lower position.
    worth = torch.where(products.isnan(), -torch.inf, products)
    rank = torch.where(candidates, torch.where(products.isnan(), 1, 2), 0)
    best_rank = rank.amax(-1, keepdim=True) if n else rank.new_zeros((*rank.shape[:-1], 1))
    worth = torch.where(rank == best_rank, worth, -torch.inf)
    best = worth.amax(-1, keepdim=True) if n else worth.new_zeros((*worth.shape[:-1], 1))
    hit = (rank == best_rank) & (worth == best)
    position = torch.where(hit, torch.arange(n, device=key.device), n)
    index = position.amin(-1) if n else position.new_full(position.shape[:-1], 0)
    found = best_rank[..., 0] > 0
    safe = torch.where(found, index, 0)
    # Not `gather`, which makes other NaN of those of bfloat16.
    each = [torch.arange(size, device=key.device) for size in key.shape[:2]]
    rows = query.new_zeros(query.shape) if n == 0 else key[each[0][:, None, None], each[1][:, None], safe]
    return torch.where(found[..., None], rows, 0).contiguous(), torch.where(found, index, -1)
