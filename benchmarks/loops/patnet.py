"""PATNet's gate, channel by channel."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import stack
from .fqgan import codebooks

VARIANTS: dict[str, dict] = {"part": {"weight": codebooks(9, 2), "bias": codebooks(9)},
                             "all": {"weight": codebooks(12, 2), "bias": codebooks(12)}}
TYPICAL: dict = {"weight": codebooks(144, 2), "bias": codebooks(144)}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width = {"small": (36, 12), "odd": (49, 12), "typical": (784, 192)}[size]
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    results = []
    for tokens in inputs.tokens:
        out, weight, bias = tokens.clone(), method.weight.to(tokens), method.bias.to(tokens)
        first = tokens.shape[1] - len(weight)
        for c in range(len(weight)):
            channel = tokens[:, first + c]
            mean = channel.sum() / len(channel)
            std = ((channel - mean).pow(2).sum() / (len(channel) - 1)).sqrt()
            pre = (weight[c, 0] * mean + weight[c, 1] * std + bias[c]).item()
            out[:, first + c] = channel * min(max((pre + 3) / 6, 0.0), 1.0)
        results.append(Result(out[None]))
    return stack(results)
