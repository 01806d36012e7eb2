"""ProMoE's expert choice, one expert after the other."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import promoe_token, stack

VARIANTS: dict[str, dict] = {"share": {"prototypes": promoe_token.prototypes(6, 16), "capacity": 0.2},
                             "count": {"prototypes": promoe_token.prototypes(5, 16), "capacity": 9}}
TYPICAL: dict = {"prototypes": promoe_token.prototypes(12, 768), "capacity": 85}
inputs = promoe_token.inputs


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    n, results = inputs.tokens.shape[1], []
    count = method.capacity if isinstance(method.capacity, int) else round(method.capacity * n)
    for tokens in inputs.tokens:
        hidden, indices, scores = [], [], []
        for prototype in method.prototypes.to(tokens):
            cosine = torch.stack([t.dot(prototype) / (t.norm() * prototype.norm()) for t in tokens])
            best = cosine.topk(count).indices.sort().values
            hidden.append(tokens[best])
            indices.append(best)
            scores.append(cosine)
        results.append(Result(torch.cat(hidden)[None], torch.stack(indices)[None], scores=torch.stack(scores)[None]))
    return stack(results)
