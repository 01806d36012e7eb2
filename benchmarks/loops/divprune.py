"""DivPrune with its N x N matrix and a minimum over a growing slab."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import kept, stack

VARIANTS = {"default": {}, "half": {"keep": 0.5}, "count": {"keep": 5}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width = {"small": (40, 16), "odd": (53, 16), "typical": (576, 4096)}[size]
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    n = inputs.tokens.shape[1]
    count = method.keep if isinstance(method.keep, int) else round(n * method.keep)
    results = []
    for row, tokens in enumerate(inputs.tokens):
        unit = tokens / tokens.norm(dim=1, keepdim=True)
        distance = 1 - unit @ unit.T
        picked: list[int] = []
        for step in range(count):
            nearest = distance[picked].min(0).values if step else distance.topk(2, dim=0, largest=False).values[1]
            nearest[picked] = -torch.inf
            picked.append(int(nearest.argmax().item()))
        results.append(kept(inputs, row, torch.tensor(sorted(picked), device=tokens.device)))
    return stack(results)
