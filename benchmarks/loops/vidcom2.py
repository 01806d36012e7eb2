"""VidCom2 with its Gaussians written out and a top-k per frame."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result

from . import kept, on_grid, stack

VARIANTS = {"default": {}, "half": {"keep": 0.5, "temperature": 0.02}, "count": {"keep": 11, "scales": (0.5, 1.0)}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    grid, width = {"small": ((4, 3, 3), 16), "odd": ((5, 2, 5), 16), "typical": ((32, 14, 14), 3584)}[size]
    return on_grid(batch, grid, width, generator)


def gaussians(tokens: Tensor, centre: Tensor, scales: tuple[float, ...]) -> Tensor:
    distance = (tokens - centre).square().sum(-1)
    return torch.stack([(-distance / (2 * a)).exp() for a in scales]).sum(0)


def budgets(weights: Tensor, total: int, capacity: int) -> list[int]:
    """Parts of the total by largest remainder; a full frame leaves the rest to the others."""
    parts: dict[int, int] = {}
    while True:
        free = [f for f in range(len(weights)) if f not in parts]
        rest = total - sum(parts.values())
        whole = sum(weights[f].item() for f in free)
        shares = {f: rest * weights[f].item() / whole for f in free}
        full = [f for f in free if shares[f] > capacity]
        if not full:
            break
        parts.update(dict.fromkeys(full, capacity))
    parts.update({f: int(share) for f, share in shares.items()})
    order = sorted(free, key=lambda f: int(shares[f]) - shares[f])
    for f in order[:total - sum(parts.values())]:
        parts[f] += 1
    return [parts[f] for f in range(len(weights))]


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    frames, n = inputs.grid[0], inputs.grid[1] * inputs.grid[2]
    total = method.keep if isinstance(method.keep, int) else round(method.keep * frames * n)
    results = []
    for row, tokens in enumerate(inputs.tokens):
        video = F.normalize(tokens, dim=-1).view(frames, n, -1)
        of_video = gaussians(video, video.mean((0, 1)), method.scales)
        scores = -(of_video + gaussians(video, video.mean(1, keepdim=True), method.scales))
        share = (-of_video.mean(1) / method.temperature).softmax(0)
        indices = []
        for frame, count in enumerate(budgets(1 + share - 1 / frames, total, n)):
            indices += [frame * n + i for i in sorted(scores[frame].topk(count).indices.tolist())]
        results.append(kept(inputs, row, torch.tensor(indices, device=tokens.device), scores=scores.view(1, -1)))
    return stack(results)
