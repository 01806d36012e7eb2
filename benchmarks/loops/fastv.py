"""FastV from the stored attention matrix of the layer before."""

from typing import Any

import torch
from torch import Tensor

from vtkernels.methods import Inputs, Result

from . import attention, kept, probabilities, stack

VARIANTS = {"half": {}, "quarter": {"keep": 0.25}, "count": {"keep": 3}, "all_rows": {"all_rows": True}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width, heads = {"small": (36, 16, 4), "odd": (49, 16, 4), "typical": (576, 4096, 32)}[size]
    rows = n + 64 if size == "typical" else 5  # eager attention stores every row of the prompt
    head = 128 if size == "typical" else 8
    layer = attention(batch, heads, heads, rows, n + 64, head, generator, start=35, causal=True)
    hidden = torch.randn(batch, n, width, generator=generator)
    positions = torch.arange(35, 35 + n).expand(batch, n)
    return Inputs(hidden=hidden, positions=positions, decoder=(layer,))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    layer, n = inputs.decoder[-1], inputs.tokens.shape[1]
    keep = method.stages[stage].keep
    count = keep if isinstance(keep, int) else round(n * keep)
    results = []
    for row in range(inputs.tokens.shape[0]):
        weights: Tensor = probabilities(layer, row).mean(0)[:, layer.start:layer.start + n]
        scores = weights.mean(0) if method.all_rows else weights[-1]
        indices = scores.topk(count).indices.sort().values
        results.append(kept(inputs, row, indices, scores=scores[None]))
    return stack(results)
