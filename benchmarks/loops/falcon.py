"""FALCON with registers cut out crop by crop, and the attention among them image by image and head by head."""

from copy import deepcopy
from typing import Any

import torch

from vtkernels.methods import Inputs, Result
from vtkernels.methods.falcon import ReAtten

from . import stack


def module(width: int, heads: int) -> ReAtten:
    generator, made = torch.Generator().manual_seed(1), ReAtten(width, heads).requires_grad_(False)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / width**0.5)
    return made


VARIANTS: dict[str, dict] = {
    "recompact": {"registers": 4},
    "reatten": {"registers": 3, "reatten": module(16, 2)},
    "packed": {"registers": 3, "reatten": module(16, 2), "images": (1, 2)},
}
TYPICAL: dict = {"reatten": module(1024, 16)}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    crops, width = {"small": ((12,) * 3, 16), "odd": ((9, 17, 7), 16), "typical": ((640,) * 10, 1024)}[size]
    return Inputs(hidden=torch.randn(batch, sum(crops), width, generator=generator), segments=crops)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    results, m = [], method.registers
    images = method.images or (len(inputs.segments),)
    for tokens in inputs.tokens:
        ends = torch.tensor(inputs.segments).cumsum(0).tolist()
        places = [p for end in ends for p in range(end - m, end)]
        registers = torch.stack([tokens[p] for p in places])
        if method.reatten is not None:
            module, start, mixed = deepcopy(method.reatten).to(tokens), 0, []
            for crops in images:
                own = registers[start:start + crops * m]
                q, k, v = (p(own).chunk(module.heads, -1) for p in (module.query, module.key, module.value))
                heads = [(a @ b.T / a.shape[-1] ** 0.5).softmax(-1) @ c for a, b, c in zip(q, k, v, strict=True)]
                mixed.append(own + module.out(torch.cat(heads, -1)))
                start += crops * m
            registers = torch.cat(mixed)
        results.append(Result(registers[None], torch.tensor(places, device=tokens.device)[None]))
    return stack(results)
