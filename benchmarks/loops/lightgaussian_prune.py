"""LightGaussian's pruning with sorted lists and boolean masks."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import stack

VARIANTS: dict[str, dict] = {"default": {"scales": (3, 6)}, "clamp": {"scales": (0, 3), "clamp": True, "power": 1.0},
                             "few": {"scales": (3, 6), "prune": 0.9}}
TYPICAL: dict = {"scales": (3, 6)}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width = {"small": (40, 8), "odd": (53, 8), "typical": (200_000, 59)}[size]
    parameters = torch.rand(batch, n, width, generator=generator) + 0.01
    return Inputs(hidden=parameters, scores=torch.rand(batch, n, generator=generator))


def loop(method: Any, inputs: Any, stage: int = 0) -> Result:
    results = []
    for parameters, importance in zip(inputs.tokens, inputs.scores, strict=True):
        volume = torch.ones_like(importance)
        for channel in range(*method.scales):
            volume = volume * parameters[:, channel]
        share = volume / volume.sort(descending=True).values[int(len(volume) * 0.9)].item()
        if method.clamp:
            share = share.minimum(torch.ones_like(share))
        significance = share.pow(method.power) * importance
        removed = significance <= significance.sort().values[int(method.prune * (len(volume) - 1))].item()
        indices = (~removed).nonzero()[:, 0]
        results.append(Result(parameters[~removed][None], indices[None], scores=significance[None],
                              counts=torch.tensor([len(indices)], dtype=torch.int32, device=indices.device)))
    return stack(results)
