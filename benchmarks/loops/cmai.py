"""CMAI from stored attention maps, with one more softmax over the masked logits."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import attention, stack

VARIANTS: dict[str, dict] = {"half": {"keep": 0.5}, "count": {"keep": 7}}
TYPICAL: dict = {"keep": 0.5}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, text, rows, heads, kv, width = {"small": (30, 6, 6, 4, 4, 8), "odd": (35, 5, 9, 4, 2, 8),
                                       "typical": (576, 64, 64, 32, 32, 128)}[size]
    layer = attention(batch, heads, kv, rows, 4 + n + text, width, generator, start=4, causal=True)
    return Inputs(hidden=torch.randn(batch, n, 16, generator=generator), decoder=(layer,))


def loop(method: Any, inputs: Any, stage: int = 0) -> Result:
    layer, n = inputs.decoder[-1], inputs.tokens.shape[1]
    (heads, rows, width), keys = layer.query.shape[1:], layer.key.shape[2]
    start, end = layer.start, layer.start + n
    count = method.keep if isinstance(method.keep, int) else round(method.keep * n)
    results = []
    for row in range(layer.query.shape[0]):
        maps, logits = [], []
        for head in range(heads):
            product = layer.query[row, head] @ layer.key[row, head * layer.key.shape[1] // heads].T / width**0.5
            for i in range(rows):
                product[i, keys - rows + i + 1:] = -torch.inf
            logits.append(product)
            maps.append(product.softmax(-1)[-(keys - end):])
        attention_map = sum(maps) / heads
        focus = attention_map[:, end:] @ attention_map[:, start:end]
        inhibited = torch.ones_like(focus, dtype=torch.bool)
        for t, line in enumerate(focus):
            inhibited[t, line.topk(count).indices] = False
        out = []
        for head, product in enumerate(logits):
            product[-len(focus):, start:end].masked_fill_(inhibited, -torch.inf)
            out.append(product.softmax(-1) @ layer.value[row, head * layer.key.shape[1] // heads])
        results.append(Result(torch.cat(out, -1)[None]))
    return stack(results)
