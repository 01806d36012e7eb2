"""TimeChat-Online's token drop, which asks for one token after the other."""

from typing import Any

import torch
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result

from . import kept, on_grid, padded, stack

VARIANTS = {"feature": {"threshold": 0.0}, "feature-relative": {"threshold": 0.6, "relative": True},
            "pixel": {"threshold": 0.33, "level": "pixel"},
            "pixel-relative": {"threshold": 0.6, "level": "pixel", "relative": True}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    grid, width = {"small": ((4, 3, 3), 16), "odd": ((5, 2, 5), 16), "typical": ((16, 16, 16), 3584)}[size]
    n = grid[0] * grid[1] * grid[2]
    positions = torch.arange(3 * n).view(n, 3).expand(batch, n, 3)
    pixels = None if size == "typical" else torch.rand(batch, n, 3, 4, 4, generator=generator)
    return on_grid(batch, grid, width, generator, positions=positions, pixels=pixels)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    frames, n = inputs.grid[0], inputs.grid[1] * inputs.grid[2]
    pixel = method.level == "pixel"
    results = []
    for row, tokens in enumerate(inputs.tokens):
        if pixel:
            assert inputs.pixels is not None
            video = inputs.pixels[row].view(frames, n, -1)
            change = (video[1:] - video[:-1]).abs().mean(-1).flatten()
        else:
            video = tokens.view(frames, n, -1)
            change = -F.cosine_similarity(video[1:], video[:-1], dim=-1).flatten()
        if method.relative:
            gone = set(change.topk(int(method.threshold * len(change)), largest=False).indices.tolist())
        else:
            threshold = method.threshold if pixel else -method.threshold
            gone = {i for i in range(len(change)) if change[i].item() <= threshold}
        kept_tokens = [i for i in range(frames * n) if i < n or i - n not in gone]
        first = torch.full_like(change[:n], torch.inf)
        scores = torch.cat([first, change])[None] * (1 if pixel else -1)
        indices = torch.tensor(kept_tokens, device=tokens.device)
        if method.relative:
            results.append(kept(inputs, row, indices, scores=scores))
        else:
            results.append(padded(inputs, row, indices, frames * n, scores=scores))
    return stack(results)
