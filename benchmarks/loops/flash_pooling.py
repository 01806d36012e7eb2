"""FLASH's pooling with the stored attention matrix."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import stack


def queries(count: int, width: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count)) / width**0.5


VARIANTS = {"default": {"queries": queries(8, 16)}, "one": {"queries": queries(1, 16)}}
TYPICAL: dict = {"queries": queries(64, 4096)}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width = {"small": (40, 16), "odd": (53, 16), "typical": (576, 4096)}[size]
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    learned = method.queries.to(inputs.tokens)
    return stack([Result(((learned @ tokens.T).softmax(1) @ tokens)[None]) for tokens in inputs.tokens])
