"""CoViPAL one image at a time, the text repeated beside every token."""

import copy
from typing import Any

import torch
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result
from vtkernels.methods.covipal import Scorer

from . import kept, stack


def scorer(width: int, hidden: int) -> Scorer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Scorer(width, hidden)


VARIANTS = {"default": {"scorer": scorer(16, 24)}, "count": {"scorer": scorer(16, 8), "keep": 7, "layer": 3}}
TYPICAL: dict = {"scorer": scorer(4096, 256)}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, text, width = {"small": (36, 5, 16), "odd": (49, 7, 16), "typical": (576, 64, 4096)}[size]
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator),
                  text=torch.randn(batch, text, width, generator=generator))


@torch.no_grad()
def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.text is not None
    n, keep = inputs.tokens.shape[1], method.stages[stage].keep
    count = keep if isinstance(keep, int) else round(keep * n)
    results = []
    for row, tokens in enumerate(inputs.tokens):
        model = method.scorer
        if model.out.weight.dtype != tokens.dtype:
            model = copy.deepcopy(model).to(tokens)
        both = torch.cat([tokens, inputs.text[row].mean(0).expand(n, -1)], 1)
        weight = torch.cat([model.visual.weight, model.textual.weight], 1)
        scores = model.out(F.gelu(F.linear(both, weight, model.visual.bias)))[:, 0]
        results.append(kept(inputs, row, scores.topk(count).indices.sort().values, scores=scores[None]))
    return stack(results)
