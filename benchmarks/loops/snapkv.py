"""SnapKV with the window's stored attention matrix, a top-k and a gather for each head."""

from typing import Any

import torch
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result

from . import attention, probabilities, stack

VARIANTS = {"default": {"keep": 20, "window": 6}, "mean": {"keep": 0.5, "window": 4, "kernel": 5, "pooling": "mean"},
            "unpooled": {"keep": 9, "window": 1, "kernel": 1}, "window_only": {"keep": 8, "window": 8}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    keys, heads, kv_heads, rows = {"small": (48, 4, 2, 12), "odd": (61, 6, 2, 9), "typical": (8192, 28, 4, 64)}[size]
    head = 128 if size == "typical" else 8
    return Inputs(decoder=(attention(batch, heads, kv_heads, rows, keys, head, generator, causal=True),))


def votes(method: Any, inputs: Inputs, row: int, window: int, pooling: str) -> torch.Tensor:
    """[Hkv, S - window]"""
    layer = inputs.decoder[-1].last_rows(window)
    keys = layer.key.shape[2] - window
    scores = probabilities(layer, row)[:, :, :keys].sum(1)
    scores = scores.view(layer.key.shape[1], -1, keys).mean(1)
    pool = F.avg_pool1d if pooling == "mean" else F.max_pool1d
    return pool(scores[None], method.kernel, stride=1, padding=method.kernel // 2)[0]


def first_best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Neighbours share a maximum: of equal scores the lower positions."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def compact(layer: Any, row: int, indices: list[torch.Tensor]) -> Result:
    """The caches of one row with the tokens of each head."""
    kv = tuple(torch.stack([cache[row, head, kept] for head, kept in enumerate(indices)])[None]
               for cache in (layer.key, layer.value))
    return Result(indices=torch.stack(indices)[None], kv=kv)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    layer, results = inputs.decoder[-1], []
    batch, heads, keys = layer.key.shape[:3]
    count = min(keys, method.keep if isinstance(method.keep, int) else round(method.keep * keys))
    window = torch.arange(keys - method.window, keys)
    for row in range(batch):
        scores = votes(method, inputs, row, method.window, method.pooling)
        best = [first_best(scores[head], count - method.window) for head in range(heads)]
        results.append(compact(layer, row, [torch.cat([indices, window]) for indices in best]))
    return stack(results)
