"""QuoTA frame by frame, each resized by torch to a size read from the device."""

import math
from typing import Any

import torch
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result

from . import on_grid, padded, stack

VARIANTS = {"bilinear": {"keep": 30}, "average": {"keep": 0.5, "resize": "average"},
            "subsample": {"keep": 0.6, "resize": "subsample"}}
TYPICAL: dict = {"keep": 196 * 8}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    grid, width = {"small": ((4, 3, 4), 16), "odd": ((3, 5, 4), 16), "typical": ((12, 27, 27), 3584)}[size]
    n = grid[0] * grid[1] * grid[2]
    positions = torch.arange(n).expand(batch, n)
    return on_grid(batch, grid, width, generator, positions=positions,
                   frame_scores=torch.rand(batch, grid[0], generator=generator))


def split(weights: list[float], total: int, capacity: int) -> list[int]:
    """Full frames first, their excess to the others; then by largest remainder."""
    parts: dict[int, int] = {}
    while True:
        free = [f for f in range(len(weights)) if f not in parts]
        rest, whole = total - sum(parts.values()), sum(weights[f] for f in free)
        shares = {f: rest * weights[f] / whole for f in free}
        full = [f for f in free if shares[f] > capacity]
        if not full:
            break
        parts |= dict.fromkeys(full, capacity)
    parts |= {f: math.floor(share) for f, share in shares.items()}
    for f in sorted(free, key=lambda f: parts[f] - shares[f])[:total - sum(parts.values())]:
        parts[f] += 1
    return [parts[f] for f in range(len(weights))]


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    assert inputs.frame_scores is not None
    _, rows, columns = inputs.grid
    n, total = rows * columns, inputs.tokens.shape[1]
    count = method.keep if isinstance(method.keep, int) else round(method.keep * total)
    results = []
    for row, tokens in enumerate(inputs.tokens):
        weights = [(100 * p.item()) ** 2 for p in inputs.frame_scores[row]]
        parts, indices = [], []
        for frame, budget in enumerate(split(weights, count, count if method.resize == "bilinear" else n)):
            if budget == 0:
                continue
            if method.resize == "subsample":
                indices += [frame * n + q * (n - 1) // max(budget - 1, 1) for q in range(budget)]
                continue
            height = width = math.isqrt(budget)
            if height * (width + 1) <= budget:
                width += 1
            picture = tokens[frame * n:(frame + 1) * n].T.view(1, -1, rows, columns)
            if method.resize == "bilinear":
                small = F.interpolate(picture, (height, width), mode="bilinear", align_corners=False)
            else:
                small = F.adaptive_avg_pool2d(picture, (height, width))
            parts.append(small[0].flatten(1).T)
        if method.resize == "subsample":
            results.append(padded(inputs, row, torch.tensor(indices, device=tokens.device), count))
        else:
            hidden = torch.cat(parts)
            filled = torch.cat([hidden, hidden.new_zeros(count - len(hidden), hidden.shape[1])])
            results.append(Result(filled[None], counts=torch.tensor([len(hidden)], dtype=torch.int32)))
    return stack(results)
