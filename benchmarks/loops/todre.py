"""ToDRE: the matrix of all distances, then the mass of a stored attention matrix, read on the host."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import attention, kept, padded, probabilities, stack

VARIANTS = {"max_sum": {"keep": 0.2, "threshold": 0.72}, "max_min": {"keep": 9, "objective": "max_min", "layers": ()},
            "two_layers": {"layers": (20, 26), "threshold": 0.745}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width, heads = {"small": (40, 16, 4), "odd": (53, 16, 4), "typical": (576, 4096, 32)}[size]
    rows, head = (32, 128) if size == "typical" else (3, 8)
    layer = attention(batch, heads, heads, rows, n + rows + 15, head, generator, start=15, causal=True)
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator), decoder=(layer,))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    n, results = inputs.tokens.shape[1], []
    for row, tokens in enumerate(inputs.tokens):
        if stage:
            layer = inputs.decoder[-1]
            scores = probabilities(layer, row).mean(0).mean(0)[layer.start:layer.start + n]
            stays = range(0 if scores.sum().item() < method.threshold else n)
            results.append(padded(inputs, row, torch.tensor(list(stays), dtype=torch.int64), n, scores=scores[None]))
            continue
        count = method.keep if isinstance(method.keep, int) else round(n * method.keep)
        unit = tokens / tokens.norm(dim=1, keepdim=True)
        distance = 1 - unit @ unit.T
        picked: list[int] = []
        for _ in range(count):
            if method.objective == "max_sum":
                value = distance[picked].sum(0) if picked else distance.sum(0)
            else:
                value = distance[picked].min(0).values if picked else distance.topk(2, dim=0, largest=False).values[1]
            value[picked] = -torch.inf
            picked.append(int(value.argmax().item()))
        results.append(kept(inputs, row, torch.tensor(sorted(picked))))
    return stack(results)
