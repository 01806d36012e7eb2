"""VFlowOpt image by image, with the stored attention matrix, histograms of patches and a loop over groups."""

from math import ceil
from typing import Any

import torch
from torch import Tensor

from vtkernels.methods import Inputs, Result

from . import attention, kept, probabilities, stack
from ._joined import Merged, joined

VARIANTS = {"image": {"keep": 0.4, "threshold": 1.02, "cell": 2.6},
            "sparse_cells": {"keep": 0.8, "layers": (), "layer_keep": (), "threshold": 1.02, "cell": 1.7},
            "entropy": {"keep": 12, "layers": (), "layer_keep": (), "threshold": 1.02, "cell": 3.5,
                        "entropy_weight": 0.5},
            "video": {"keep": 0.4, "layers": (), "layer_keep": (), "threshold": 34.8, "recycle": False}}
TYPICAL = {"threshold": 1.1}  # random attention is flat


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """With the importance of an earlier stage for "odd"."""
    grid, width, heads = {"small": ((1, 6, 6), 16, 4), "odd": ((2, 5, 7), 16, 4), "typical": ((1, 27, 27), 3584, 16)}[
        size]
    n = grid[0] * grid[1] * grid[2]
    head = 72 if size == "typical" else 8
    layer = attention(batch, heads, heads, n, n, head, generator)
    hidden = torch.randn(batch, n, width, generator=generator)
    if size == "typical":
        return Inputs(hidden=hidden, grid=grid, vision=(layer,))
    # Flat patches among the others, so that their entropies differ.
    pixels = torch.rand(batch, n, 3, 6, 6, generator=generator) * torch.rand(batch, n, 1, 1, 1, generator=generator) / 4
    scores = torch.rand(batch, n, generator=generator) if size == "odd" else None
    return Inputs(hidden=hidden, grid=grid, vision=(layer,), pixels=pixels, scores=scores,
                  positions=torch.arange(n).expand(batch, n))


def importance(method: Any, inputs: Inputs, row: int) -> Tensor:
    if inputs.scores is not None:
        return inputs.scores[row]
    matrix = probabilities(inputs.vision[-1], row).mean(0)
    received = matrix.mean(0)
    rows = received > method.threshold * received.mean()
    result = matrix[rows].mean(0) if rows.any() else received
    if method.entropy_weight:
        assert inputs.pixels is not None
        entropies = []
        for patch in inputs.pixels[row]:
            grey = 0.299 * patch[0] + 0.587 * patch[1] + 0.114 * patch[2]
            share = torch.histc((grey * 255).floor(), bins=256, min=0, max=256) / grey.numel()
            entropies.append(-(share[share > 0] * share[share > 0].log2()).sum())
        result = result + method.entropy_weight * torch.stack(entropies).softmax(0)
    return result


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    n, (frames, rows, columns) = inputs.tokens.shape[1], inputs.grid
    keep = method.stages[stage].keep
    results = []
    for row, tokens in enumerate(inputs.tokens):
        scores = importance(method, inputs, row)
        count = n - round(n * (1 - keep)) if stage else keep if isinstance(keep, int) else round(n * keep)
        if stage or not method.recycle:
            indices = scores.topk(count).indices.sort().values
            results.append(kept(inputs, row, indices, scores=scores[None]))
            continue
        alone = count - round(n / method.cell**2)
        best = scores.topk(alone).indices.tolist()
        cells: dict[tuple[int, int, int], list[int]] = {}
        for place in set(range(n)) - set(best):
            frame, down, across = place // (rows * columns), place // columns % rows, place % columns
            cells.setdefault((frame, int(down / method.cell), int(across / method.cell)), []).append(place)
        merged: list[Merged] = []
        for members in cells.values():
            weights = scores[members]
            token = (tokens[members] * weights[:, None]).sum(0) / weights.sum()
            merged.append((members[int(weights.argmax().item())], members, token))
        groups = frames * ceil(rows / method.cell) * ceil(columns / method.cell)
        results.append(joined(inputs, row, sorted(best), merged, appended=False, length=alone + groups,
                              scores=scores[None]))
    return stack(results)
