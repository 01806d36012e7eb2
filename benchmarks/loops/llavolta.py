"""LLaVolta with average pooling over transposed states."""

from typing import Any

import torch
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result

from . import stack

VARIANTS = {"heavy": {}, "light": {"layer": 16}, "pairs": {"window": 2}, "off": {"layer": 0, "window": 1}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """Position ids of three kinds for "odd", which no window divides."""
    n, width = {"small": (40, 16), "odd": (53, 16), "typical": (576, 4096)}[size]
    positions = torch.arange(35, 35 + n).expand(batch, n)
    if size == "odd":
        positions = torch.stack([positions, positions // 7, positions % 7 * 3], 2)
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator), positions=positions)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    n, window = inputs.tokens.shape[1], method.window
    results = []
    for row, tokens in enumerate(inputs.tokens):
        pooled = F.avg_pool1d(tokens.T[None], window, ceil_mode=True).mT
        assert inputs.positions is not None
        ids = inputs.positions[row].double().view(n, -1)
        means = F.avg_pool1d(ids.T[None], window, ceil_mode=True).mT.long()
        group = torch.arange(n) // window
        results.append(Result(pooled, torch.arange(0, n, window)[None], assignment=group[None],
                              positions=means.view(1, -1, *inputs.positions.shape[2:])))
    return stack(results)
