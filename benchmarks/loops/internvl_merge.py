"""InternVL's pixel shuffle with two views and permuted copies."""

from typing import Any

import torch
from torch import nn

from vtkernels.methods import Inputs, Result
from vtkernels.methods.internvl_merge import mlp_projector

from . import on_grid, stack
from ._modules import like


def projector(width: int, out: int, factor: int = 2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(factor)
        return mlp_projector(width, out, factor).requires_grad_(False)


VARIANTS = {"v2": {"project": projector(16, 24)}, "v1": {"project": projector(16, 24), "quirk_transposed": True},
            "three": {"project": projector(16, 8, 3), "factor": 3}}
TYPICAL: dict = {"project": projector(1024, 2048)}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """A tile of InternViT-300M for "typical"."""
    grid, width = {"small": ((1, 6, 6), 16), "odd": ((2, 6, 12), 16), "typical": ((1, 32, 32), 1024)}[size]
    return on_grid(batch, grid, width, generator)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    tiles, rows, columns = inputs.grid
    project = like(method.project, inputs.tokens)
    s, results = method.factor, []
    for tokens in inputs.tokens:
        x = tokens.view(tiles, rows, columns // s, -1).permute(0, 2, 1, 3).contiguous()
        x = x.view(tiles, columns // s, rows // s, -1)
        if not method.quirk_transposed:
            x = x.permute(0, 2, 1, 3).contiguous()
        results.append(Result(project(x.view(1, -1, x.shape[-1]))))
    return stack(results)
