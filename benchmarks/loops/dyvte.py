"""DyVTE's gate with an `if` on the host."""

import copy
from typing import Any

import torch
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result
from vtkernels.methods.dyvte import Router

from . import padded, stack


def router(width: int, hidden: int, seed: int) -> Router:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Router(width, hidden)


VARIANTS = {f"router-{seed}": {"router": router(16, 32, seed)} for seed in (1, 2)}
TYPICAL: dict = {"router": router(4096, 2048, 0)}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, text, width = {"small": (36, 5, 16), "odd": (49, 7, 16), "typical": (576, 64, 4096)}[size]
    positions = torch.arange(35, 35 + n).expand(batch, n)
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator), positions=positions,
                  text=torch.randn(batch, text, width, generator=generator))


@torch.no_grad()
def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.text is not None
    results = []
    for row, tokens in enumerate(inputs.tokens):
        module, text = method.router, inputs.text[row]
        if module.first.weight.dtype != tokens.dtype:
            module = copy.deepcopy(module).to(tokens)
        features = torch.cat([text[:-1].mean(0), text[-1]])
        votes = F.linear(F.gelu(F.linear(features, module.first.weight)), module.second.weight)
        kept = [] if votes[0].item() < votes[1].item() else range(len(tokens))
        indices = torch.tensor(list(kept), dtype=torch.int64, device=tokens.device)
        results.append(padded(inputs, row, indices, len(tokens)))
    return stack(results)
