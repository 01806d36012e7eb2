"""CATP image by image, with the greedy choice step by step."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result, Stage

from . import attention, kept, probabilities, stack

VARIANTS = {"default": {}, "counts": {"schedule": (Stage(0, 4), Stage(6, 9)), "weight": 0.8}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    images, texts, width, heads, head = {"small": ((14, 10, 12), (3, 2, 4), 16, 4, 8),
                                         "odd": ((9, 16, 11), (4, 1, 3), 16, 4, 8),
                                         "typical": ((576,) * 3, (40,) * 3, 4096, 32, 128)}[size]
    n, t = sum(images), sum(texts)
    layers = tuple(attention(batch, heads, heads, 3, n + t, head, generator, start=1, causal=True) for _ in range(2))
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator), decoder=layers, segments=images,
                  text=torch.randn(batch, t, width, generator=generator), text_segments=texts)


def scaled(x: Tensor) -> Tensor:
    return (x - x.min()) / (x.max() - x.min())


def alignment(tokens: Tensor, text: Tensor) -> Tensor:
    return scaled((F.normalize(tokens, dim=-1) @ F.normalize(text, dim=-1).T).mean(1))


def determinantal(tokens: Tensor, relevance: Tensor, count: int) -> list[int]:
    """Always the token that makes the determinant largest, by the rows of a Cholesky factor."""
    unit = F.normalize(tokens, dim=-1)
    kernel = relevance[:, None] * (unit @ unit.T) * relevance
    factor, gain, picked = kernel.new_zeros(count, len(tokens)), kernel.diagonal().clone(), []
    for step in range(count):
        best = int(gain.argmax().item())
        factor[step] = (kernel[best] - factor[:step, best] @ factor[:step]) / gain[best].sqrt()
        gain -= factor[step].square()
        gain[best] = -torch.inf
        picked.append(best)
    return sorted(picked)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.text is not None
    keep = method.stages[stage].keep
    results = []
    for row, tokens in enumerate(inputs.tokens):
        if stage == 0:
            indices, start = [], 0
            texts = inputs.text[row].split(inputs.text_segments)
            for image, text in zip(tokens.split(inputs.segments), texts, strict=True):
                count = keep if isinstance(keep, int) else round(keep * len(image))
                indices += [start + i for i in determinantal(image, alignment(image, text) + 1e-6, count)]
                start += len(image)
            results.append(kept(inputs, row, torch.tensor(indices, device=tokens.device)))
            continue
        span = slice(inputs.decoder[0].start, inputs.decoder[0].start + len(tokens))
        early, late = (probabilities(layer, row).mean(0)[-1, span] for layer in inputs.decoder)
        scores = method.weight * scaled(late - early) + (1 - method.weight) * alignment(tokens, inputs.text[row])
        count = keep if isinstance(keep, int) else round(keep * len(tokens))
        results.append(kept(inputs, row, scores.topk(count).indices.sort().values, scores=scores[None]))
    return stack(results)
