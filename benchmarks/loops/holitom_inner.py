"""HoliTom inside the decoder: one dropped token after the other goes into a kept one."""

from typing import Any

import torch
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result

from . import attention, probabilities, stack

VARIANTS = {"default": {}, "count": {"keep": 5}, "running": {"quirk_running_average": True},
            "running-few": {"keep": 3, "quirk_running_average": True}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width, heads, head = {"small": (36, 16, 4, 8), "odd": (49, 16, 4, 8), "typical": (1568, 3584, 28, 128)}[size]
    layer = attention(batch, heads, heads // 2, 3, n + 9, head, generator, start=5, causal=True)
    positions = torch.arange(5, 5 + n).expand(batch, n)
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator), positions=positions, decoder=(layer,))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    layer, n, keep = inputs.decoder[-1], inputs.tokens.shape[1], method.stages[stage].keep
    count = keep if isinstance(keep, int) else round(n * keep)
    assert inputs.positions is not None
    results = []
    for row, tokens in enumerate(inputs.tokens):
        scores = probabilities(layer, row).mean(0)[-1, layer.start:layer.start + n]
        kept = scores.topk(count).indices.sort().values
        unit = F.normalize(tokens, dim=-1)
        nearest = (unit @ unit[kept].T).argmax(1)
        nearest[kept] = torch.arange(count, device=tokens.device)
        hidden, sizes = tokens[kept].clone(), torch.ones(count, dtype=tokens.dtype, device=tokens.device)
        chosen = set(kept.tolist())
        for i in range(n):
            if i not in chosen:
                target = int(nearest[i].item())
                share = 0.5 if method.quirk_running_average else 1 / (sizes[target].item() + 1)
                hidden[target] = hidden[target] * (1 - share) + tokens[i] * share
                sizes[target] += 1
        results.append(Result(hidden[None], kept[None], assignment=nearest[None],
                              sizes=None if method.quirk_running_average else sizes[None],
                              positions=inputs.positions[row:row + 1, kept], scores=scores[None]))
    return stack(results)
