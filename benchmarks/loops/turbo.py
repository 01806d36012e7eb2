"""Turbo with the stored attention matrix and the matrix of all pairs."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import attention, probabilities, stack
from .tome import merge

VARIANTS = {"default": {}, "mild": {"r": 0.3, "alpha": 2.0}, "class_token": {"r": 12, "protected": 1},
            "fourth": {"r": 0.5, "stride": 4, "alpha": 30.0}}
TYPICAL: dict = {"protected": 1}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width, heads = {"small": (36, 16, 4), "odd": (53, 24, 2), "typical": (197, 1024, 16)}[size]
    rows = n if size == "odd" else 1  # an encoder without a class token looks with every row
    layer = attention(batch, heads, heads, rows, n, 64 if size == "typical" else 8, generator)
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator), vision=(layer,))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    layer, n = inputs.vision[-1], inputs.tokens.shape[1]
    results = []
    for row in range(inputs.tokens.shape[0]):
        value = probabilities(layer, row).mean((0, 1))[layer.start:layer.start + n]
        results.append(merge(method, inputs, row, -method.alpha * value))
    return stack(results)
