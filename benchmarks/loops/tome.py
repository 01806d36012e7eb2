"""ToMe with the matrix of all pairs, a sort and scatter-adds."""

from typing import Any

import torch
from torch import Tensor

from vtkernels.methods import Inputs, Result

from . import attention, stack

VARIANTS = {"default": {}, "class_token": {"r": 0.4, "protected": 1}, "third": {"r": 100, "stride": 3},
            "two_protected": {"r": 9, "protected": 2}}
TYPICAL: dict = {"protected": 1}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """Typical: the tokens of ViT-L/16 with their class token."""
    n, width, heads = {"small": (36, 16, 4), "odd": (53, 24, 2), "typical": (197, 1024, 16)}[size]
    layer = attention(batch, heads, heads, 1, n, 64 if size == "typical" else 8, generator)
    sizes = torch.randint(1, 5, (batch, n), generator=generator).float() if size != "odd" else None
    positions = torch.arange(n).expand(batch, n) + 3
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator), vision=(layer,), sizes=sizes,
                  positions=positions)


def merge(method: Any, inputs: Inputs, row: int, bias: Tensor | None = None) -> Result:
    layer, tokens = inputs.vision[-1], inputs.tokens[row]
    n = len(tokens)
    metric = layer.key[row, :, layer.start:layer.start + n].mean(0)
    metric = metric / metric.norm(dim=1, keepdim=True)
    target = torch.arange(n) % method.stride == method.stride - 1
    target[:method.protected] = False
    source = ~target
    source[:method.protected] = False
    targets, sources = target.nonzero()[:, 0], source.nonzero()[:, 0]
    r = min(method.r if isinstance(method.r, int) else round(method.r * n), len(sources))
    similarity = metric[sources] @ metric[targets].T
    best, partner = similarity.max(1)
    score = best if bias is None else best + bias[sources]
    chosen = score.argsort(descending=True)[:r]
    group = torch.arange(n)
    group[sources[chosen]] = targets[partner[chosen]]
    size = tokens.new_ones(n) if inputs.sizes is None else inputs.sizes[row]
    total = torch.zeros_like(tokens).index_add_(0, group, tokens * size[:, None])
    sizes = torch.zeros_like(size).index_add_(0, group, size)
    kept = (group == torch.arange(n)).nonzero()[:, 0]
    assignment = torch.searchsorted(kept, group)
    positions = None if inputs.positions is None else inputs.positions[row, kept][None]
    return Result((total / sizes[:, None])[kept][None], kept[None], assignment=assignment[None],
                  sizes=sizes[kept][None], positions=positions)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    return stack([merge(method, inputs, row) for row in range(inputs.tokens.shape[0])])
