"""FlowCut image by image, the number to drop read on the host."""

from math import log
from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import attention, kept, padded, probabilities, stack

VARIANTS = {"cls": {"keep": 10, "encoder_layers": 6}, "share": {"keep": 0.3, "encoder_layers": 5, "momentum": 0.3},
            "no_cls": {"keep": 10, "encoder_layers": 6, "cls_token": False}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """With the average of earlier layers for "odd"."""
    n, width, heads = {"small": (36, 16, 4), "odd": (49, 24, 2), "typical": (576, 1024, 16)}[size]
    rows = 3 if size == "odd" else 1
    head, scale = (64, 0.125) if size == "typical" else (8, 1.0)  # uneven enough that tokens are dropped
    layers = tuple(attention(batch, heads, heads, rows, n + 1, head, generator, start=1, scale=scale) for _ in range(2))
    scores = torch.rand(batch, n, generator=generator) if size == "odd" else None
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator), vision=layers, scores=scores)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    n = inputs.tokens.shape[1]
    target = method.keep if isinstance(method.keep, int) else round(n * method.keep)
    left = method.encoder_layers - 2 - method.stages[stage].layer
    results = []
    for row in range(inputs.tokens.shape[0]):
        average = None if inputs.scores is None else inputs.scores[row]
        attended = inputs.tokens.new_zeros(n)
        for layer in inputs.vision:
            assert layer.value is not None
            value = layer.value[row]
            size = value.mean(0)[1:].abs().sum(1)
            if method.cls_token:
                attended = probabilities(layer, row).mean(0).mean(0)[1:]
                alike = (value[:, :1] @ value[:, 1:].mT).softmax(-1).mean(0)[0]
                score = (attended / attended.sum() + alike / alike.sum()) * size
            else:
                assert layer.scale is not None
                logits = layer.query[row].mean(1, keepdim=True) @ layer.key[row].mT * layer.scale
                attended = logits.softmax(-1).mean(0)[0, 1:]
                score = attended * size
            average = score if average is None else method.momentum * average + (1 - method.momentum) * score
        assert average is not None
        share = attended / attended.sum()
        entropy = -(share * share.log()).sum().item() / log(n)
        drop = round((n - target) / left**0.5 * (1 - entropy**2)) if left else n - target
        indices = average.topk(max(n - drop, target)).indices.sort().values
        results.append(padded(inputs, row, indices, n, scores=average[None]) if left
                       else kept(inputs, row, indices, scores=average[None]))
    return stack(results)
