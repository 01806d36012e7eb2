"""VTC-CLS over the stored attention of every layer."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import attention, kept, probabilities, stack

VARIANTS = {"sum": {"keep": 9}, "min": {"keep": 0.25, "reduce": "min"},
            "max": {"keep": 9, "reduce": "max", "first_layer": 1}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width, heads, layers = {"small": (36, 16, 4, 4), "odd": (49, 24, 2, 3), "typical": (576, 1024, 16, 24)}[size]
    head = 64 if size == "typical" else 8
    vision = tuple(attention(batch, heads, heads, 1, n + 1, head, generator, start=1) for _ in range(layers))
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator), vision=vision)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    n = inputs.tokens.shape[1]
    count = method.keep if isinstance(method.keep, int) else round(n * method.keep)
    results = []
    for row in range(inputs.tokens.shape[0]):
        scores = None
        for layer in inputs.vision[method.first_layer:-1]:
            weights = probabilities(layer, row)[:, 0, 1:].mean(0)
            if scores is None:
                scores = weights
            elif method.reduce == "sum":
                scores = scores + weights
            else:
                scores = (torch.minimum if method.reduce == "min" else torch.maximum)(scores, weights)
        assert scores is not None
        indices = scores.topk(count).indices.sort().values
        results.append(kept(inputs, row, indices, scores=scores[None]))
    return stack(results)
