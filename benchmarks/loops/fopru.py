"""FoPru from the stored attention matrix of the encoder."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import attention, kept, on_grid, probabilities, stack

VARIANTS = {"rank": {}, "rank_count": {"keep": 7, "layer": -2}, "row": {"strategy": "row", "keep": 0.4},
            "row_count": {"strategy": "row", "keep": 20}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """A CLS row; every row of an encoder without CLS for "odd"."""
    grid, width, heads = {"small": ((1, 6, 6), 16, 4), "odd": ((2, 5, 7), 24, 2), "typical": ((1, 24, 24), 1024, 16)}[
        size]
    n = grid[0] * grid[1] * grid[2]
    rows, start = (n, 0) if size == "odd" else (1, 1)
    head = 64 if size == "typical" else 8
    vision = tuple(attention(batch, heads, heads, rows, n + start, head, generator, start=start) for _ in range(2))
    return on_grid(batch, grid, width, generator, vision=vision)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    n, columns, layer = inputs.tokens.shape[1], inputs.grid[2], inputs.vision[method.layer]
    results = []
    for row in range(inputs.tokens.shape[0]):
        scores = probabilities(layer, row).mean(0).mean(0)[layer.start:]
        if method.strategy == "rank":
            count = method.keep if isinstance(method.keep, int) else round(n * method.keep)
            indices = scores.topk(count).indices.sort().values
        else:
            lines = n // columns
            count = method.keep // columns if isinstance(method.keep, int) else round(lines * method.keep)
            sums = torch.stack([scores[i * columns:(i + 1) * columns].sum() for i in range(lines)])
            best = sorted(sums.topk(count).indices.tolist())
            indices = torch.tensor([i * columns + j for i in best for j in range(columns)])
        results.append(kept(inputs, row, indices, scores=scores[None]))
    return stack(results)
