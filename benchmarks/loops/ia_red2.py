"""IA-RED2 with every token projected, one image at a time."""

import copy
from typing import Any

import torch

from vtkernels.methods import Inputs, Result
from vtkernels.methods.ia_red2 import Interpreter

from . import padded, stack


def interpreter(width: int, heads: int) -> Interpreter:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Interpreter(width, heads)


VARIANTS = {"default": {"interpreter": interpreter(16, 4)},
            "stricter": {"interpreter": interpreter(16, 2), "threshold": 0.7},
            "min-keep": {"interpreter": interpreter(16, 2), "threshold": 0.999, "min_keep": 5}}
TYPICAL: dict = {"interpreter": interpreter(768, 12)}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width = {"small": (36, 16), "odd": (49, 16), "typical": (196, 768)}[size]
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator))


@torch.no_grad()
def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    results = []
    for row, tokens in enumerate(inputs.tokens):
        module, n = method.interpreter, len(tokens)
        if module.policy.dtype != tokens.dtype:
            module = copy.deepcopy(module).to(tokens)
        query = module.query(tokens).view(n, module.heads, -1)
        key = module.key(module.policy).view(module.heads, -1)
        scores = (query * key).sum(-1).sigmoid().mean(1)
        indices = (scores > method.threshold).nonzero()[:, 0]
        if len(indices) < method.min_keep:
            indices = scores.topk(method.min_keep).indices.sort().values
        results.append(padded(inputs, row, indices, n, scores=scores[None]))
    return stack(results)
