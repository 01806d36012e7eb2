"""MAVIS with another method, through the loop of that one."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result, get

from . import fastv, loop_of

VARIANTS: dict[str, dict] = {"default": {}, "fastv": {"method": "fastv", "config": {"keep": 0.25}}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    return fastv.inputs(batch, size, generator)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    return loop_of(method.method).loop(get(method.method, **method.config), inputs, stage)
