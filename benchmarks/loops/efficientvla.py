"""EfficientVLA's tokens from the stored attention matrix and all cosines to the key tokens."""

from typing import Any

import torch
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result

from . import attention, kept, probabilities, stack

VARIANTS = {"count": {"keep": 12}, "third": {"keep": 0.33, "key": 3, "task": 0.25}, "few": {"keep": 2},
            "diverse": {"keep": 9, "key": 1, "task": 0.0}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width, heads, head, text = {"small": (36, 16, 4, 8, 5), "odd": (49, 16, 4, 8, 7),
                                   "typical": (256, 4096, 32, 128, 40)}[size]
    layer = attention(batch, heads, heads, text, n + text + 1, head, generator, start=1, causal=True)
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator), decoder=(layer,))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    layer, n = inputs.decoder[-1], inputs.tokens.shape[1]
    count = method.keep if isinstance(method.keep, int) else round(method.keep * n)
    key = min(method.key, count)
    task = round(method.task * (count - key))
    results = []
    for row, tokens in enumerate(inputs.tokens):
        relevance = probabilities(layer, row)[..., layer.start:layer.start + n].mean((0, 1))
        order = relevance.argsort(descending=True).tolist()
        picked, rest = order[:key + task], order[key + task:]
        unit = F.normalize(tokens, dim=-1)
        nearest = (unit[rest] @ unit[order[:key]].T).amax(1)
        picked += [rest[i] for i in nearest.argsort()[:count - key - task].tolist()]
        indices = torch.tensor(sorted(picked), device=tokens.device)
        results.append(kept(inputs, row, indices, scores=relevance[None]))
    return stack(results)
