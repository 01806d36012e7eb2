"""Token-Shuffle with permuted copies."""

from typing import Any

import torch
from torch import Tensor

from vtkernels.methods import Inputs, Result
from vtkernels.methods._linear import Linear
from vtkernels.methods.token_shuffle import ResidualMLP

from . import on_grid, stack
from ._modules import like


def modules(width: int, factor: int = 2, blocks: int = 2, expansion: int = 4, back: bool = False) -> dict:
    """Random parts of the shuffle, or of the way back."""
    with torch.random.fork_rng():
        torch.manual_seed(factor)
        few = width // factor**2
        project = Linear(few, width) if back else Linear(width, few)
        return {"project": project.requires_grad_(False),
                "mix": ResidualMLP(width, blocks, expansion).requires_grad_(False), "factor": factor}


VARIANTS = {"default": modules(36), "three": modules(36, 3, 1)}
TYPICAL: dict = modules(3072, expansion=1)


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """A picture of 512 x 512 pixels as 32 x 32 codes for "typical"."""
    grid, width = {"small": ((1, 6, 6), 36), "odd": ((2, 6, 12), 36), "typical": ((1, 32, 32), 3072)}[size]
    return on_grid(batch, grid, width, generator)


def residual(mix: Any, x: Tensor) -> Tensor:
    for norm, up, gelu, down in mix.blocks:
        x = x + down(gelu(up(norm(x))))
    return x


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    frames, rows, columns = inputs.grid
    project, mix = (like(module, inputs.tokens) for module in (method.project, method.mix))
    s, results = method.factor, []
    for tokens in inputs.tokens:
        x = project(tokens[None]).view(frames, rows // s, s, columns // s, s, -1)
        x = x.permute(0, 1, 3, 2, 4, 5).contiguous().view(1, -1, s * s * x.shape[-1])
        results.append(Result(residual(mix, x)))
    return stack(results)
