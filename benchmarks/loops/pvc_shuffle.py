"""PVC's token shuffle, window by window."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import on_grid, stack

VARIANTS: dict[str, dict] = {"pairs": {"factor": 2}, "none": {"factor": 1}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    grid, width = {"small": ((2, 4, 4), 6), "odd": ((3, 2, 6), 5), "typical": ((4, 32, 32), 1024)}[size]
    return on_grid(batch, grid, width, generator)


def loop(method: Any, inputs: Any, stage: int = 0) -> Result:
    s, results = method.factor, []
    frames, height, width = inputs.grid
    for tokens in inputs.tokens:
        picture = tokens.view(frames, height, width, -1)
        out = []
        for t in range(frames):
            for i in range(0, height, s):
                for j in range(0, width, s):
                    out.append(torch.cat([picture[t, i + y, j + x] for y in range(s) for x in range(s)]))
        results.append(Result(torch.stack(out)[None]))
    return stack(results)
