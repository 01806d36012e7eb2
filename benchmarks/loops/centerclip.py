"""CenterCLIP with a stored distance matrix and a mask of clusters x tokens x tokens."""

from typing import Any

import torch
from torch import Tensor

from vtkernels.methods import Inputs, Result

from . import on_grid, stack

# Either member of a cluster of two can be its medoid, as rounding wills: these configurations meet none.
VARIANTS = {"default": {"centres": 3, "iterations": 6}, "cosine": {"centres": 4, "metric": "cosine", "iterations": 5},
            "means": {"centres": 3, "means": True, "iterations": 5},
            "pairs": {"frames": 2, "centres": 2, "metric": "cosine", "iterations": 5},
            "start": {"frames": 1, "centres": 3, "iterations": 0}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    grid, width = {"small": ((6, 2, 4), 6), "odd": ((6, 3, 3), 5), "typical": ((12, 7, 7), 768)}[size]
    n = grid[0] * grid[1] * grid[2]
    sizes = torch.randint(1, 4, (batch, n), generator=generator).float() if size == "odd" else None
    return on_grid(batch, grid, width, generator, sizes=sizes, positions=torch.arange(n).expand(batch, n) + 5)


def cluster(method: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The cluster of each token, and the medoids in ascending order."""
    if method.metric == "cosine":
        unit = x / x.norm(dim=1, keepdim=True)
        distance = 1 - unit @ unit.T
    else:
        distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    distance.fill_diagonal_(0)
    chosen = [int(x.norm(dim=1).argmax().item())]
    while len(chosen) < method.centres:
        chosen.append(int(distance[chosen].min(0).values.argmax().item()))
    medoids = torch.tensor(chosen).sort().values
    for _ in range(method.iterations):
        group = distance[medoids].argmin(0)
        mask = group == torch.arange(method.centres)[:, None]
        inside = torch.where(mask[:, :, None] & mask[:, None], distance, 0.0).sum(2)
        moved = inside.masked_fill(~mask, torch.inf).argmin(1).sort().values
        if torch.equal(moved, medoids):
            break
        medoids = moved
    return distance[medoids].argmin(0), medoids


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    n, segments = inputs.tokens.shape[1], inputs.grid[0] // method.frames
    each = n // segments
    results = []
    for row, tokens in enumerate(inputs.tokens):
        groups, centres = zip(*(cluster(method, part) for part in tokens.split(each)), strict=True)
        indices = torch.cat([c + i * each for i, c in enumerate(centres)])
        group = torch.cat([g + i * method.centres for i, g in enumerate(groups)])
        hidden, sizes = tokens[indices], None
        if method.means:
            size = tokens.new_ones(n) if inputs.sizes is None else inputs.sizes[row]
            sizes = torch.stack([size[group == i].sum() for i in range(len(indices))])[None]
            hidden = torch.stack([(size[group == i, None] * tokens[group == i]).sum(0) for i in range(len(indices))])
            hidden = hidden / sizes[0, :, None]
        assert inputs.positions is not None
        results.append(Result(hidden[None], indices[None], assignment=group[None], sizes=sizes,
                              positions=inputs.positions[row, indices][None]))
    return stack(results)
