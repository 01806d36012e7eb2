"""HoliTom before the decoder: dynamic programming in Python, and clusters window by window."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result

from . import stack

VARIANTS = {"default": {"keep": 0.5}, "contextual": {"keep": 0.6, "contextual": 0.4, "tau": 0.85},
            "plain-means": {"keep": 0.3, "beta": 0.0, "neighbours": 3, "tau": 0.75}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """Scenes of a few frames, with noise of its own for each token."""
    grid, width, scene = {"small": ((6, 3, 3), 16, 3), "odd": ((5, 2, 6), 16, 4),
                          "typical": ((32, 14, 14), 3584, 8)}[size]
    frames, n = grid[0], grid[1] * grid[2]
    scenes = torch.randn(batch, -(-frames // scene), 1, n, width, generator=generator)
    video = scenes.expand(-1, -1, scene, -1, -1).flatten(1, 2)[:, :frames]
    noise = torch.rand(batch, 1, n, 1, generator=generator) * 0.8
    video = video + noise * torch.randn(batch, frames, n, width, generator=generator)
    positions = torch.arange(frames * n).expand(batch, frames * n)
    return Inputs(hidden=video.flatten(1, 2), grid=grid, positions=positions,
                  scores=torch.rand(batch, frames * n, generator=generator))


def windows(same: Tensor) -> list[tuple[int, int]]:
    """First and last frames; `same` `[F, n]` compares a frame with the one before."""
    frames = len(same)
    best, start = [0], []
    for end in range(frames):
        value, first = best[end], end
        for begin in range(end - 1, -1, -1):
            still = int(same[begin + 1:end + 1].all(0).sum().item())
            gain = best[begin] + (end - begin) * still
            if gain > value:
                value, first = gain, begin
        best.append(value)
        start.append(first)
    found, end = [], frames - 1
    while end >= 0:
        found.append((start[end], end))
        end = start[end] - 1
    return found[::-1]


def clusters(features: Tensor, count: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Centres and the centre of each token."""
    distance = torch.cdist(features, features) / features.shape[1] ** 0.5
    near = distance.topk(min(neighbours, len(features)), largest=False).values
    density = (-near.square().mean(1)).exp()
    denser = density[None] > density[:, None]
    delta = torch.where(denser, distance, torch.inf).amin(1)
    delta = torch.where(denser.any(1), delta, distance.max())
    centres = (density * delta).topk(count).indices.sort().values
    joined = distance[:, centres].argmin(1)
    joined[centres] = torch.arange(count, device=features.device)
    return centres, joined


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    assert inputs.scores is not None
    assert inputs.positions is not None
    frames, total = inputs.grid[0], inputs.tokens.shape[1]
    n = total // frames
    results = []
    for row, tokens in enumerate(inputs.tokens):
        video, importance = tokens.view(frames, n, -1), inputs.scores[row].view(frames, n)
        same = torch.zeros(frames, n, dtype=torch.bool, device=tokens.device)
        same[1:] = F.cosine_similarity(video[1:], video[:-1], dim=-1) > method.tau
        cuts = windows(same)
        stills = [same[s + 1:e + 1].all(0) if e > s else torch.zeros_like(same[0]) for s, e in cuts]
        reduced = sum(int(still.sum().item()) * (e - s) for (s, e), still in zip(cuts, stills, strict=True))
        share = min(method.keep / ((total - reduced) / total), 1)
        found: dict[int, Tensor] = {}
        goes = torch.full((total,), -1)

        def merge(features: Tensor, places: list[list[int]], count: int, found=found, goes=goes) -> None:
            """`places`: where the token of each feature stands, and the others that it is the mean of."""
            if count == 0:
                return
            centres, joined = clusters(features, count, method.neighbours)
            for i, centre in enumerate(centres.tolist()):
                mean = features[joined == i].mean(0)
                found[places[centre][0]] = method.beta * features[centre] + (1 - method.beta) * mean
                for member in (joined == i).nonzero()[:, 0].tolist():
                    goes[places[member]] = places[centre][0]

        for (s, e), still in zip(cuts, stills, strict=True):
            fixed = still.nonzero()[:, 0].tolist()
            if fixed:
                places = [[frame * n + j for frame in range(s, e + 1)] for j in fixed]
                merge(video[s:e + 1, fixed].mean(0), places, round(len(fixed) * share))
            moving = (~still).nonzero()[:, 0]
            for frame in range(s, e + 1):
                count = math.ceil(len(moving) * share)
                dominant = round(count * (1 - method.contextual))
                order = importance[frame, moving].argsort(descending=True)
                for j in moving[order[:dominant]].tolist():
                    found[frame * n + j] = video[frame, j]
                    goes[frame * n + j] = frame * n + j
                rest = moving[order[dominant:]].sort().values.tolist()
                merge(video[frame, rest], [[frame * n + j] for j in rest], count - dominant)
        rows = min(total, int(method.keep * total) + 2 * frames)
        indices = sorted(found)
        fill = rows - len(indices)
        hidden = torch.stack([found[i] for i in indices] + [torch.zeros_like(tokens[0])] * fill)
        assignment = torch.tensor([indices.index(i) if i >= 0 else -1 for i in goes.tolist()])
        positions = torch.tensor(inputs.positions[row, indices].tolist() + [0] * fill)
        results.append(Result(hidden[None], torch.tensor([indices + [-1] * fill]),
                              torch.tensor([len(indices)], dtype=torch.int32), assignment[None],
                              positions=positions[None], scores=inputs.scores[row:row + 1]))
    return stack(results)
