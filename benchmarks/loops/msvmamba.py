"""MSVMamba's readings of the half map, by flips and transposes of the picture."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import on_grid, stack


def corners(tokens: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Stands for the learned convolution of stride 2."""
    return tokens.unflatten(1, (rows, columns))[:, ::2, ::2].flatten(1, 2)


VARIANTS: dict[str, dict] = {"mean": {}, "given": {"down": corners}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    grid, width = {"small": ((1, 6, 6), 5), "odd": ((1, 4, 10), 7), "typical": ((1, 56, 56), 96)}[size]
    return on_grid(batch, grid, width, generator)


def loop(method: Any, inputs: Any, stage: int = 0) -> Result:
    _, rows, columns = inputs.grid
    results = []
    for tokens in inputs.tokens:
        picture = tokens.view(rows, columns, -1)
        small = torch.stack([torch.stack([
            picture[i, j] if method.down is not None else picture[i:i + 2, j:j + 2].mean((0, 1))
            for j in range(0, columns, 2)]) for i in range(0, rows, 2)])
        readings = [[small[i, j] for i in range(rows // 2) for j in range(columns // 2)][::-1],
                    [small[i, j] for j in range(columns // 2) for i in range(rows // 2)]]
        readings.append(readings[1][::-1])
        results.append(Result(torch.stack([token for reading in readings for token in reading])[None]))
    return stack(results)
