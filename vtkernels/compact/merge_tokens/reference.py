"""Plain torch, any device: members added up in order of their groups, then divided by their weights."""

import torch
from torch import Tensor

from ..._library import STATUS_BAD_INDEX


def flag_bad_groups(assignment: Tensor, groups: int, status: Tensor | None) -> None:
    if status is not None:
        bad = ((assignment < -1) | (assignment >= groups)).any()
        status.bitwise_or_(bad.to(torch.int32) * STATUS_BAD_INDEX)


def merge_tokens(tokens: Tensor, assignment: Tensor, groups: int, *, weights: Tensor | None = None,
                 reduce: str = "mean", status: Tensor | None = None) -> tuple[Tensor, Tensor]:
    batch, n, _ = tokens.shape
    flag_bad_groups(assignment, groups, status)
    weight = torch.ones(batch, n, device=tokens.device) if weights is None else weights
    member = (assignment >= 0) & (assignment < groups) & (weight != 0)
    # Tokens of no group go to one more group at the end, which is cut off.
    slot = torch.where(member, assignment, groups).long() + (groups + 1) * torch.arange(
        batch, device=tokens.device)[:, None]

    def total(rows: Tensor) -> Tensor:
        sums = rows.new_zeros((batch * (groups + 1), *rows.shape[2:]))
        sums.index_add_(0, slot.flatten(), rows.flatten(0, 1))
        return sums.view(batch, groups + 1, *rows.shape[2:])[:, :groups]

    sizes = total(torch.where(member, weight, 0.0))
    counts = total(member.float())
    sums = total(torch.where(member[..., None], weight[..., None] * tokens.float(), 0.0))
    if reduce == "mean":
        empty = (counts == 0) | (sizes == 0)
        sums = torch.where(empty[..., None], 0.0, sums / sizes[..., None])
    merged = sums.to(tokens.dtype)
    if reduce == "mean" and n:
        # The sum of the positions of a group's members is the position of its only one.
        place = total(torch.where(member, torch.arange(n, device=tokens.device), 0)).clamp(max=n - 1)
        # Not `gather`, which makes other NaN of those of bfloat16.
        alone = tokens[torch.arange(batch, device=tokens.device)[:, None], place]
        merged = torch.where(counts[..., None] == 1, alone, merged)
    return merged.contiguous(), sizes.contiguous()
