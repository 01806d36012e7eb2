"""Kept tokens and merged ones as one result."""

import torch
from torch import Tensor

from ..compact.gather_tokens import gather_tokens
from ..compact.merge_tokens import merge_tokens
from ._inputs import Inputs, Result


def join(inputs: Inputs, kept: Tensor, merged: Tensor, places: Tensor, members: Tensor, groups: Tensor, *,
         scores: Tensor, appended: bool, ragged: bool = False) -> Result:
    """The tokens at `kept` and the `merged` ones, these at the end (`appended`) or each at its place.

    Args:
        kept: `[B, K]` ascending.
        merged: `[B, M, D]`.
        places: `[B, M]` where each merged token stands, -1 for an empty one, which goes to the end (not `appended`).
        members, groups: `[B, R]` tokens that were not kept, and the merged token 0 to M - 1 that each went into, or -1.
        ragged: give the counts, because some of the merged tokens may be empty.

    Appended tokens do not stand in ascending places: then `indices` is None, and `assignment` tells what went where.
    """
    batch, n = inputs.tokens.shape[:2]
    count, rows = kept.shape[1], kept.shape[1] + merged.shape[1]
    hidden = torch.cat([gather_tokens([inputs.tokens], kept)[0], merged], 1)
    where = torch.cat([kept, places], 1)
    row = torch.arange(rows, device=kept.device).expand(batch, rows)
    if not appended:
        where, order = where.masked_fill(where < 0, n).sort(dim=1, stable=True)
        where = where.masked_fill(where == n, -1)
        hidden = gather_tokens([hidden], order)[0]
        row = order.argsort(1)
    none = torch.nn.functional.pad(row, (0, 1), value=-1)
    into = none.gather(1, torch.where(groups < 0, rows, groups + count))
    assignment = kept.new_full((batch, n), -1).scatter(1, kept, row[:, :count]).scatter(1, members, into)
    held = inputs.sizes if inputs.sizes is not None else scores.new_ones(batch, n)
    sizes = merge_tokens(held[..., None], assignment, rows, reduce="sum")[0][..., 0]
    positions = None if inputs.positions is None else gather_tokens([inputs.positions], where)[0]
    counts = (where >= 0).sum(1, dtype=torch.int32) if ragged else None
    return Result(hidden, None if appended else where, counts, assignment, sizes, positions, scores)


def mask_of(chosen: Tensor, n: int) -> Tensor:
    """`[B, n]` bool, True at the positions `chosen` `[B, K]`."""
    return torch.zeros(chosen.shape[0], n, dtype=torch.bool, device=chosen.device).scatter_(1, chosen, True)
