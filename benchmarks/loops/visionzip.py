"""VisionZip with the stored attention matrix, a similarity matrix and a mask of the dominant tokens."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import attention, probabilities, stack
from ._joined import joined

VARIANTS = {
    "published": {"dominant": 9, "contextual": 4, "appended": True},
    "cls": {"dominant": 8, "contextual": 3, "cls_token": True, "appended": True},
    "in_place": {"dominant": 0.25, "contextual": 0.1, "layer": -2},
    "dominant_only": {"dominant": 6, "contextual": 0},
}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """A CLS row; every row of an encoder without CLS, and tokens that were merged before, for "odd"."""
    n, width, heads = {"small": (36, 16, 4), "odd": (49, 24, 2), "typical": (576, 1024, 16)}[size]
    rows, start = (n, 0) if size == "odd" else (1, 1)
    head = 64 if size == "typical" else 8
    vision = tuple(attention(batch, heads, heads, rows, n + start, head, generator, start=start) for _ in range(2))
    sizes = torch.randint(1, 5, (batch, n), generator=generator).float() if size == "odd" else None
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator), vision=vision, sizes=sizes,
                  positions=torch.arange(7, 7 + n).expand(batch, n))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    n, layer = inputs.tokens.shape[1], inputs.vision[method.layer]
    dominant, count = (v if isinstance(v, int) else round(n * v) for v in (method.dominant, method.contextual))
    results = []
    for row, tokens in enumerate(inputs.tokens):
        scores = probabilities(layer, row).mean(1).sum(0)[layer.start:layer.start + n]
        best = ([0, *(scores[1:].topk(dominant - 1).indices + 1).tolist()] if method.cls_token
                else scores.topk(dominant).indices.tolist())
        mask = torch.ones(n, dtype=torch.bool)
        mask[best] = False
        others = mask.nonzero()[:, 0]
        keys = layer.key[row].mean(0)[layer.start:layer.start + n][others]
        keys = keys / keys.norm(dim=1, keepdim=True)
        rest, merged = tokens[others], []
        if count:
            targets = list(range(0, len(rest), len(rest) // count))[:count]
            nearest = (keys @ keys[targets].T).argmax(1).tolist()
            for group, target in enumerate(targets):
                members = [i for i in range(len(rest)) if nearest[i] == group and i not in targets]
                token = rest[target] + (rest[members].mean(0) if members else 0)
                merged.append((int(others[target]), others[[target, *members]].tolist(), token))
        results.append(joined(inputs, row, sorted(best), merged, appended=method.appended, scores=scores[None]))
    return stack(results)
