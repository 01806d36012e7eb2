"""PVC's temporal attention as a mask over all pairs of the video."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import attention, on_grid, stack

VARIANTS: dict[str, dict] = {"default": {}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    grid, heads, width = {"small": ((4, 2, 4), 2, 8), "odd": ((3, 3, 5), 3, 8), "typical": ((4, 16, 16), 16, 64)}[size]
    n = grid[0] * grid[1] * grid[2]
    layer = attention(batch, heads, heads, n, n, width, generator)
    return on_grid(batch, grid, 16, generator, vision=(layer,))


def loop(method: Any, inputs: Any, stage: int = 0) -> Result:
    layer, places = inputs.vision[-1], inputs.grid[1] * inputs.grid[2]
    order = torch.arange(layer.key.shape[2], device=layer.key.device)
    same_place = (order % places)[:, None] == order % places
    visible = same_place & ((order // places)[:, None] >= order // places)
    results = []
    for row in range(layer.query.shape[0]):
        out = []
        for query, key, value in zip(layer.query[row], layer.key[row], layer.value[row], strict=True):
            logits = query @ key.T / query.shape[-1] ** 0.5
            out.append(logits.masked_fill(~visible, -torch.inf).softmax(-1) @ value)
        results.append(Result(torch.cat(out, -1)[None]))
    return stack(results)
