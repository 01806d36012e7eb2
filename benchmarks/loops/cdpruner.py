"""CDPruner with the whole kernel matrix and a Cholesky row for every pick."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import kept, stack

VARIANTS = {"count": {"keep": 9}, "share": {"keep": 0.25, "epsilon": 0.01}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """The relevance by text; given for "odd"."""
    n, width, words = {"small": (40, 16, 5), "odd": (53, 24, 3), "typical": (576, 1024, 32)}[size]
    scores = torch.randn(batch, n, generator=generator) if size == "odd" else None
    text = torch.randn(batch, words, width, generator=generator)
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator), text=text, scores=scores)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    n = inputs.tokens.shape[1]
    count = method.keep if isinstance(method.keep, int) else round(n * method.keep)
    results = []
    for row, tokens in enumerate(inputs.tokens):
        unit = tokens / tokens.norm(dim=1, keepdim=True)
        if inputs.scores is not None:
            raw = inputs.scores[row]
        else:
            assert inputs.text is not None
            words = inputs.text[row] / inputs.text[row].norm(dim=1, keepdim=True)
            raw = (unit @ words.T).mean(1)
        relevance = (raw - raw.min()) / (raw.max() - raw.min()) + method.epsilon
        kernel = relevance[:, None] * (unit @ unit.T) * relevance
        left, cis, picked = kernel.diagonal().clone(), tokens.new_zeros(count, n), []
        for step in range(count):
            best = int(left.argmax().item())
            cis[step] = (kernel[best] - cis[:step, best] @ cis[:step]) / left[best].sqrt()
            left = left - cis[step] ** 2
            left[best] = -torch.inf
            picked.append(best)
        results.append(kept(inputs, row, torch.tensor(sorted(picked)), scores=relevance[None]))
    return stack(results)
