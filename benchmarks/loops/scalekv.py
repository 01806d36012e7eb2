"""ScaleKV with the window's indices from Python loops and the logits of all observed queries."""

from typing import Any

import torch
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result

from . import attention, stack
from .snapkv import compact, first_best

VARIANTS = {"default": {"capacity": 30, "trigger": 20}, "unpooled": {"capacity": 40, "kernel": 1, "trigger": 20},
            "nine": {"capacity": 25, "side": 3, "kernel": 3, "trigger": 20}, "whole": {}}
TYPICAL: dict = {"capacity": 526}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """The 11th scale of Infinity-2B for "typical": 40 x 40 tokens, the cache before them already compacted."""
    before, grid, heads = {"small": (20, (1, 6, 6), 2), "odd": (9, (1, 5, 8), 3),
                           "typical": (1500, (1, 40, 40), 16)}[size]
    n = grid[1] * grid[2]
    layer = attention(batch, heads, heads, n, before + n, 128 if size == "typical" else 8, generator)
    return Inputs(decoder=(layer,), grid=grid)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    layer, (_, rows, columns) = inputs.decoder[-1], inputs.grid
    batch, heads, keys, width = layer.key.shape
    before = keys - rows * columns
    window = []
    for i in range(method.side):
        for j in range(method.side):
            window.append(int((i + 0.5) * rows / method.side) * columns + int((j + 0.5) * columns / method.side))
    count = keys if keys <= method.trigger else min(method.capacity, keys)
    results = []
    for row in range(batch):
        logits = layer.query[row][:, window] @ layer.key[row].mT / width**0.5
        scores = logits.sum(1)
        forced = [before + i for i in window]
        scores[:, forced] = -torch.inf
        scores = F.max_pool1d(scores[None], method.kernel, stride=1, padding=method.kernel // 2)[0]
        scores[:, forced] = -torch.inf
        best = []
        for head in range(heads):
            chosen = first_best(scores[head], count - len(forced)).tolist()
            best.append(torch.tensor(sorted(chosen + forced)))
        results.append(compact(layer, row, best))
    return stack(results)
