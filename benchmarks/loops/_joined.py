"""Kept and merged tokens as one row of a result, token by token."""

from typing import Any

import torch
from torch import Tensor

from vtkernels.methods import Inputs, Result

Merged = tuple[int, list[int], Tensor]  # where it stands, its members, the token


def joined(inputs: Inputs, row: int, kept: list[int], merged: list[Merged], *, appended: bool, length: int = 0,
           **fields: Any) -> Result:
    """With `length`, filled up to it with zeros and -1, and with the count."""
    tokens = inputs.tokens[row]
    entries = [(place, [place], tokens[place]) for place in kept] + merged
    if not appended:
        entries.sort(key=lambda entry: entry[0])
    assignment = [-1] * len(tokens)
    for number, (_, members, _) in enumerate(entries):
        for member in members:
            assignment[member] = number
    held = torch.ones_like(tokens[:, 0]) if inputs.sizes is None else inputs.sizes[row]
    sizes = torch.stack([held[members].sum() for _, members, _ in entries])
    hidden = torch.stack([token for _, _, token in entries])
    places = torch.tensor([place for place, _, _ in entries])
    fill = max(0, length - len(entries))
    if inputs.positions is not None:
        positions = inputs.positions[row, places]
        fields["positions"] = torch.cat([positions, positions.new_zeros(fill, *positions.shape[1:])])[None]
    return Result(
        torch.cat([hidden, hidden.new_zeros(fill, hidden.shape[1])])[None],
        None if appended else torch.cat([places, places.new_full((fill,), -1)])[None],
        torch.tensor([len(entries)], dtype=torch.int32) if length else None,
        torch.tensor(assignment)[None], torch.cat([sizes, sizes.new_zeros(fill)])[None], **fields)
