"""YOPO as it is simulated: the whole attention matrix, masked, and its heads multiplied by zeros."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import attention, stack

HEADS = torch.arange(4) != 2
VARIANTS: dict[str, dict] = {"window": {"window": 3}, "heads": {"window": 5, "heads": HEADS},
                             "cut": {"window": 3, "cut": True}}
TYPICAL: dict = {"window": 7}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    side, text, heads, kv, width = {"small": ((6, 6), 5, 4, 4, 8), "odd": ((5, 7), 4, 4, 2, 8),
                                    "typical": ((24, 24), 64, 32, 32, 128)}[size]
    n = side[0] * side[1]
    keys = 3 + n + text
    layer = attention(batch, heads, kv, keys, keys, width, generator, start=3, causal=True)
    return Inputs(hidden=torch.randn(batch, n, 16, generator=generator), grid=(1, *side), decoder=(layer,))


def loop(method: Any, inputs: Any, stage: int = 0) -> Result:
    layer, (_, height, width) = inputs.decoder[-1], inputs.grid
    start, n, keys = layer.start, height * width, layer.key.shape[2]
    radius = (method.window - 1) // 2
    visible = torch.ones(keys, keys, dtype=torch.bool, device=layer.key.device).tril()
    for i in range(n):
        for j in range(n):
            near = abs(i // width - j // width) <= radius and abs(i % width - j % width) <= radius
            visible[start + i, start + j] = near
    results = []
    for row in range(layer.query.shape[0]):
        out = []
        for head, query in enumerate(layer.query[row]):
            group = head // (layer.query.shape[1] // layer.key.shape[1])
            logits = query @ layer.key[row, group].T / query.shape[-1] ** 0.5
            weights = logits.masked_fill(~visible, -torch.inf).softmax(-1)
            gate = 0.0 if method.cut or (method.heads is not None and not method.heads[head].item()) else 1.0
            weights[:, start:start + n] *= gate
            one = weights @ layer.value[row, group]
            one[start:start + n] *= gate
            out.append(one)
        results.append(Result(torch.cat(out, -1)[None]))
    return stack(results)
