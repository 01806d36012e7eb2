"""ConvLLaVA's downsampling as the strided convolution of pictures with channels first."""

from typing import Any

import torch
from torch import nn

from vtkernels.methods import Inputs, Result

from . import on_grid, stack
from ._modules import like


def modules(width: int, out: int, side: int = 2, bias: bool = True) -> dict:
    with torch.random.fork_rng():
        torch.manual_seed(side)
        norm = nn.LayerNorm(width, eps=1e-6)
        conv = nn.Conv2d(width, out, side, side, bias=bias)
        return {"norm": norm.requires_grad_(False), "conv": conv.requires_grad_(False)}


VARIANTS = {"default": modules(16, 24), "three": modules(16, 8, 3, bias=False)}
TYPICAL: dict = modules(1536, 3072)


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """The last stage of ConvNeXt-L for 768 x 768 pixels for "typical"."""
    grid, width = {"small": ((1, 6, 6), 16), "odd": ((2, 6, 12), 16), "typical": ((1, 24, 24), 1536)}[size]
    return on_grid(batch, grid, width, generator)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    frames, rows, columns = inputs.grid
    norm, conv = (like(module, inputs.tokens) for module in (method.norm, method.conv))
    results = []
    for tokens in inputs.tokens:
        picture = norm(tokens).view(frames, rows, columns, -1).permute(0, 3, 1, 2).contiguous()
        out = conv(picture)
        results.append(Result(out.permute(0, 2, 3, 1).reshape(1, -1, out.shape[1])))
    return stack(results)
