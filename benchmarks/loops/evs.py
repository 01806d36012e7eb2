"""EVS with a stable sort of the whole video and a mask."""

from typing import Any

import torch
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result

from . import kept, on_grid, stack

VARIANTS = {"default": {}, "half": {"pruning_rate": 0.5}, "first-frame": {"pruning_rate": 0.9}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    grid, width = {"small": ((4, 3, 3), 16), "odd": ((5, 2, 5), 16), "typical": ((32, 14, 14), 3584)}[size]
    n = grid[0] * grid[1] * grid[2]
    positions = torch.arange(3 * n).view(n, 3).expand(batch, n, 3)
    return on_grid(batch, grid, width, generator, positions=positions)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    frames, rows, columns = inputs.grid
    n = rows * columns
    count = max(n, int(frames * n * (1 - method.pruning_rate)))
    results = []
    for row, tokens in enumerate(inputs.tokens):
        video = tokens.view(frames, n, -1)
        changed = 1 - F.cosine_similarity(video[1:], video[:-1], dim=-1)
        scores = torch.cat([torch.full_like(changed[:1], torch.inf), changed]).flatten()
        order = scores.argsort(descending=True, stable=True)
        mask = torch.zeros(frames * n, dtype=torch.bool, device=tokens.device)
        mask[order[:count]] = True
        results.append(kept(inputs, row, mask.nonzero()[:, 0], scores=scores[None]))
    return stack(results)
