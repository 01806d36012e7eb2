"""EM attention token by token and base by base, in the steps of its definition."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import stack


def bases(count: int, width: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(2)), dim=1)


VARIANTS: dict[str, dict] = {"default": {"bases": bases(4, 12)}, "once": {"bases": bases(5, 12), "iterations": 1},
                             "rebuild": {"bases": bases(4, 12), "iterations": 0, "discount": 0.3}}
TYPICAL: dict = {"bases": bases(32, 768)}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width = {"small": (36, 12), "odd": (45, 12), "typical": (16 * 30, 768)}[size]
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    results = []
    for tokens in inputs.tokens:
        mu = list(method.bases.to(tokens))
        for _ in range(method.iterations):
            share = [torch.stack([token.dot(base) for base in mu]).softmax(0) for token in tokens]
            for k in range(len(mu)):
                total = sum(z[k] for z in share)
                mean = sum(z[k] * token for z, token in zip(share, tokens, strict=True)) / total
                mu[k] = mean / mean.norm()
        rebuilt = []
        for token in tokens:
            z = torch.stack([token.dot(base) for base in mu]).softmax(0)
            rebuilt.append(sum(z[k] * mu[k] for k in range(len(mu))))
        apart = tokens - torch.stack(rebuilt)
        scores = torch.stack([line.norm() for line in apart])
        results.append(Result((tokens - method.discount * torch.stack(rebuilt))[None], scores=scores[None]))
    return stack(results)
