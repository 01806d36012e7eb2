"""EfficientVLA's layer importance, layer by layer."""

from typing import Any

import torch
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result

from . import stack

VARIANTS = {"count": {"keep": 2}, "share": {"keep": 0.7}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    layers, n, width = {"small": (5, 7, 16), "odd": (6, 5, 16), "typical": (32, 96, 4096)}[size]
    hidden = torch.randn(batch, (layers + 1) * n, width, generator=generator)
    return Inputs(hidden=hidden, grid=(layers + 1, 1, n))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    layers, n = inputs.grid[0] - 1, inputs.grid[2]
    count = method.keep if isinstance(method.keep, int) else round(method.keep * layers)
    results = []
    for tokens in inputs.tokens:
        states = tokens.view(layers + 1, n, -1)
        importance = [1 - F.cosine_similarity(states[i], states[i + 1], dim=-1).mean().item() for i in range(layers)]
        best = sorted(range(layers), key=lambda i: -importance[i])[:count]
        results.append(Result(indices=torch.tensor([sorted(best)], device=tokens.device),
                              scores=torch.tensor([importance], dtype=tokens.dtype, device=tokens.device)))
    return stack(results)
