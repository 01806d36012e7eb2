"""Neighbourhood attention through the whole matrix and its mask."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import attention, on_grid, stack

VARIANTS: dict[str, dict] = {"default": {}, "video": {"window": (3, 3, 3)}, "image": {"window": (1, 5, 3)}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    grid, heads, width = {"small": ((2, 4, 6), 2, 8), "odd": ((3, 5, 4), 3, 8),
                          "typical": ((8, 14, 14), 5, 64)}[size]
    n = grid[0] * grid[1] * grid[2]
    layer = attention(batch, heads, heads, n, n, width, generator)
    return on_grid(batch, grid, 16, generator, vision=(layer,))


def loop(method: Any, inputs: Any, stage: int = 0) -> Result:
    layer, grid = inputs.vision[-1], inputs.grid
    places = torch.cartesian_prod(*(torch.arange(side) for side in grid)).to(layer.key.device)
    apart = (places[:, None] - places[None]).abs()
    visible = (apart <= torch.tensor(method.window, device=apart.device) // 2).all(-1)
    results = []
    for row in range(layer.query.shape[0]):
        out = []
        for query, key, value in zip(layer.query[row], layer.key[row], layer.value[row], strict=True):
            logits = query @ key.T / query.shape[-1] ** 0.5
            out.append(logits.masked_fill(~visible, -torch.inf).softmax(-1) @ value)
        results.append(Result(torch.cat(out, -1)[None]))
    return stack(results)
