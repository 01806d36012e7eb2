"""SparseVLM with the whole attention matrix, and density-peak clusters from a matrix of all distances."""

from typing import Any

import torch
from torch import Tensor

from vtkernels.methods import Inputs, Result

from . import attention, kept, probabilities, stack
from ._joined import Merged, joined

VARIANTS = {"published": {"layers": (2, 6), "keep": (55, 12), "appended": True},
            "in_place": {"layers": (2,), "keep": (0.3,), "neighbours": 3},
            "version_2": {"layers": (6,), "keep": (9,), "recycle": False, "heads": 3}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """The raters by text; given for "odd"."""
    n, width, heads, words = {"small": (80, 16, 4, 7), "odd": (83, 16, 6, 6), "typical": (576, 4096, 32, 64)}[size]
    head = 128 if size == "typical" else 8
    rows = n + 35 + words if size == "typical" else words
    weights = (torch.arange(words) % 2).float().expand(batch, words) if size == "odd" else None
    layer = attention(batch, heads, heads, rows, n + 35 + words, head, generator, start=35, causal=True,
                      row_weights=weights)
    hidden = torch.randn(batch, n, width, generator=generator)
    text = torch.randn(batch, words, width, generator=generator) * (0.1 if size == "typical" else 1)
    return Inputs(hidden=hidden, text=text, decoder=(layer,), positions=torch.arange(35, 35 + n).expand(batch, n))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    layer, n = inputs.decoder[-1], inputs.tokens.shape[1]
    keep = method.keep[stage]
    count = keep if isinstance(keep, int) else round(n * keep)
    results = []
    for row, tokens in enumerate(inputs.tokens):
        if layer.row_weights is None:
            assert inputs.text is not None
            relation = (tokens @ inputs.text[row].T).softmax(1).mean(0)
            raters = (relation > relation.mean()).nonzero()[:, 0] - len(relation)  # from the end
        else:
            raters = layer.row_weights[row].nonzero()[:, 0]
        per_head = probabilities(layer, row)[:, raters, layer.start:layer.start + n].mean(1)
        if method.heads:
            per_head = per_head[per_head.sum(1).topk(method.heads).indices]
        scores = per_head.mean(0)
        best = scores.topk(count).indices.sort().values
        if not method.recycle:
            results.append(kept(inputs, row, best, scores=scores[None]))
            continue
        dropped = torch.tensor([i for i in range(n) if i not in set(best.tolist())])
        members = dropped[scores[dropped].topk(int(0.3 * len(dropped)) + 1).indices].sort().values
        merged = recycled(tokens, members, len(members) // 10 + 1, method.neighbours)
        results.append(joined(inputs, row, best.tolist(), merged, appended=method.appended, scores=scores[None]))
    return stack(results)


def recycled(tokens: Tensor, members: Tensor, clusters: int, neighbours: int | None) -> list[Merged]:
    chosen = tokens[members]
    distance = (chosen[:, None] - chosen).norm(dim=2) / chosen.shape[1] ** 0.5
    nearest = distance.topk(neighbours or clusters, largest=False).values
    density = (-(nearest**2).mean(1)).exp()
    # Of equally dense tokens, as all are to themselves alone, the lower one counts as denser.
    order = torch.arange(len(density))
    denser = (density > density[:, None]) | ((density == density[:, None]) & (order < order[:, None]))
    delta = distance.masked_fill(~denser, torch.inf).min(1).values
    delta[delta.isinf()] = distance.max()
    centres = sorted((density * delta).topk(clusters).indices.tolist())
    assignment = distance[:, centres].argmin(1)
    assignment[centres] = torch.arange(clusters)
    merged = []
    for group, centre in enumerate(centres):
        inside = (assignment == group).nonzero()[:, 0]
        merged.append((int(members[centre]), members[inside].tolist(), chosen[inside].mean(0)))
    return merged
