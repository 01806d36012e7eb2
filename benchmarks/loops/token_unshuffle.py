"""Token-Shuffle's way back with permuted copies."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import on_grid, stack
from ._modules import like
from .token_shuffle import modules, residual

VARIANTS = {"default": modules(36, back=True), "three": modules(36, 3, 1, back=True)}
TYPICAL: dict = modules(3072, expansion=1, back=True)


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    grid, width = {"small": ((1, 3, 3), 36), "odd": ((2, 3, 5), 36), "typical": ((1, 16, 16), 3072)}[size]
    return on_grid(batch, grid, width, generator)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    frames, rows, columns = inputs.grid
    project, mix = (like(module, inputs.tokens) for module in (method.project, method.mix))
    s, results = method.factor, []
    for tokens in inputs.tokens:
        x = residual(mix, tokens[None]).view(frames, rows, columns, s, s, -1)
        x = x.permute(0, 1, 3, 2, 4, 5).contiguous().view(1, -1, x.shape[-1])
        results.append(Result(project(x)))
    return stack(results)
