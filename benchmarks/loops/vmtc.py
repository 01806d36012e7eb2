"""VMTC with the stored attention matrix and k-means over a matrix of tokens x centres."""

from typing import Any

import torch
from torch import Tensor

from vtkernels.methods import Inputs, Result

from . import attention, probabilities, stack
from ._joined import joined

VARIANTS = {"default": {"keep": 10, "clusters": 5}, "share": {"keep": 0.5, "clusters": 3},
            "one_round": {"keep": 4, "clusters": 8, "iterations": 1}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width, heads = {"small": (36, 16, 4), "odd": (53, 24, 2), "typical": (576, 1024, 16)}[size]
    layer = attention(batch, heads, heads, 1, n + 1, 64 if size == "typical" else 8, generator, start=1)
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator), vision=(layer,),
                  positions=torch.arange(n).expand(batch, n) + 3)


def cosine_kmeans(x: Tensor, clusters: int, iterations: int) -> Tensor:
    unit = x / x.norm(dim=1, keepdim=True)
    chosen = [int(x.norm(dim=1).argmax().item())]
    while len(chosen) < clusters:
        distance = (1 - unit @ unit[chosen].T).amin(1)
        distance[chosen] = -torch.inf
        chosen.append(int(distance.argmax().item()))
    centres = unit[chosen]
    for _ in range(iterations):
        group = (unit @ (centres / centres.norm(dim=1, keepdim=True)).T).argmax(1)
        centres = torch.stack([unit[group == i].mean(0) if bool((group == i).any()) else centres[i]
                               for i in range(clusters)])
    return (unit @ (centres / centres.norm(dim=1, keepdim=True)).T).argmax(1)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    layer, n = inputs.vision[-1], inputs.tokens.shape[1]
    k = method.keep if isinstance(method.keep, int) else round(method.keep * n)
    results = []
    for row, tokens in enumerate(inputs.tokens):
        scores = probabilities(layer, row)[:, 0].mean(0)[layer.start:layer.start + n]
        kept = scores.topk(k).indices.sort().values
        left = torch.tensor([i for i in range(n) if i not in set(kept.tolist())])
        group = cosine_kmeans(tokens[left], method.clusters, method.iterations)
        merged = []
        for i in range(method.clusters):
            members = left[group == i]
            if not len(members):
                continue
            weight = scores[members, None]
            mean = (weight * tokens[members]).sum(0) / weight.sum()
            merged.append((int(members[scores[members].argmax()]), members.tolist(), mean))
        results.append(joined(inputs, row, kept.tolist(), merged, appended=False, length=k + method.clusters,
                              scores=scores[None]))
    return stack(results)
