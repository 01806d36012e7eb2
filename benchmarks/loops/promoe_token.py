"""ProMoE's token choice, with a boolean mask for each expert."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import stack


def prototypes(experts: int, width: int) -> torch.Tensor:
    return torch.randn(experts, width, generator=torch.Generator().manual_seed(4))


VARIANTS: dict[str, dict] = {
    "top 1": {"prototypes": prototypes(6, 16)}, "top 3": {"prototypes": prototypes(6, 16), "top": 3},
    "softmax": {"prototypes": prototypes(5, 16), "top": 2, "gate": "softmax"},
    "sigmoid": {"prototypes": prototypes(5, 16), "gate": "sigmoid"},
}
TYPICAL: dict = {"prototypes": prototypes(12, 768)}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width = {"small": (36, 16), "odd": (51, 16), "typical": (1024, 768)}[size]
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    results = []
    for tokens in inputs.tokens:
        experts = method.prototypes.to(tokens)
        cosine = (tokens / tokens.norm(dim=1, keepdim=True)) @ (experts / experts.norm(dim=1, keepdim=True)).T
        gates = {"identity": cosine, "softmax": cosine.softmax(1), "sigmoid": cosine.sigmoid()}[method.gate]
        chosen = cosine.topk(method.top).indices
        means, sizes = [], []
        for e in range(len(experts)):
            mine = tokens[(chosen == e).any(1)]
            sizes.append(len(mine))
            means.append(mine.mean(0) if len(mine) else torch.zeros_like(experts[0]))
        results.append(Result(torch.stack(means)[None], assignment=chosen[None],
                              sizes=torch.tensor([sizes], device=tokens.device).to(tokens.dtype),
                              scores=gates.gather(1, chosen)[None]))
    return stack(results)
