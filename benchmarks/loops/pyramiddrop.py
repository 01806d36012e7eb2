"""PyramidDrop: attention of the whole sequence again for every stage, of which one row is used, image by image."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import attention, kept, probabilities, stack

VARIANTS = {"default": {}, "counts": {"layers": (4, 9), "keep": (20, 7)}, "all_rows": {"all_rows": True}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width, heads = {"small": (36, 16, 4), "odd": (49, 16, 4), "typical": (576, 4096, 32)}[size]
    rows = n + 64 if size == "typical" else 5
    head = 128 if size == "typical" else 8
    layer = attention(batch, heads, heads, rows, n + 64, head, generator, start=35, causal=True)
    hidden = torch.randn(batch, n, width, generator=generator)
    positions = torch.arange(35, 35 + n).expand(batch, n)
    return Inputs(hidden=hidden, positions=positions, decoder=(layer,), original=n + 10 if size == "odd" else None)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    layer, n = inputs.decoder[-1], inputs.tokens.shape[1]
    keep = method.keep[stage]
    count = keep if isinstance(keep, int) else int((inputs.original or n) * keep)
    results = []
    for row in range(inputs.tokens.shape[0]):
        weights = probabilities(layer, row).mean(0)
        scores = (weights.mean(0) if method.all_rows else weights[-1])[layer.start:layer.start + n]
        indices = scores.topk(count).indices.sort().values
        results.append(kept(inputs, row, indices, scores=scores[None]))
    return stack(results)
