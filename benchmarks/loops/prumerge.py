"""LLaVA-PruMerge with the stored attention row, a list of outliers and a loop over the kept tokens."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import attention, stack

VARIANTS = {"default": {"neighbours": 5}, "low_fence": {"neighbours": 8, "fence": 0.25}, "all": {"neighbours": 100}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width, heads = {"small": (40, 16, 4), "odd": (53, 24, 2), "typical": (576, 1024, 16)}[size]
    head = 64 if size == "typical" else 8
    layer = attention(batch, heads, heads, 1, n + 1, head, generator, start=1)
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator), vision=(layer,))


def loop(method: Any, inputs: Inputs, stage: int = 0, sampled: Any = None) -> Result:
    """`sampled(method, ratio, n)`: positions to keep beside the outliers."""
    layer, n = inputs.vision[-1], inputs.tokens.shape[1]
    most = n if sampled else (n + 2) // 4
    results = []
    for row, tokens in enumerate(inputs.tokens):
        query, keys = layer.query[row].transpose(0, 1).flatten(1), layer.key[row].transpose(0, 1).flatten(1)
        attention = (query @ keys.T / keys.shape[1] ** 0.5).softmax(1)[0, layer.start:layer.start + n]
        low, high = (torch.quantile(attention, share).item() for share in (0.25, 0.75))
        ratio = (attention > high + method.fence * (high - low)).double().mean().item()
        kept = sorted(set(attention.topk(round(n * ratio)).indices.tolist())
                      | (sampled(method, ratio, n) if sampled else set()))
        keys = keys[layer.start:layer.start + n]
        unit = keys / keys.norm(dim=1, keepdim=True)
        rows = []
        for i in kept:
            similarity = unit @ unit[i]
            similarity[i] = -torch.inf
            near = similarity.topk(min(method.neighbours, n - 1)).indices
            rows.append(tokens[i] + (attention[near, None] * tokens[near]).sum(0))
        dropped = [i for i in range(n) if i not in kept]
        rows.append((attention[dropped, None] * tokens[dropped]).sum(0))
        assignment = torch.full((n,), len(kept))
        assignment[kept] = torch.arange(len(kept))
        hidden = torch.cat([torch.stack(rows), tokens.new_zeros(most + 1 - len(rows), tokens.shape[1])])
        results.append(Result(hidden[None], counts=torch.tensor([len(rows)], dtype=torch.int32),
                              assignment=assignment[None], scores=attention[None]))
    return stack(results)
