"""PEM through the matrix of all products, tokens x queries for each head."""

from copy import deepcopy
from typing import Any

import torch

from vtkernels.methods import Inputs, Result
from vtkernels.methods.pem import Interaction

from . import attention, stack


def module(width: int, **options: bool) -> Interaction:
    generator, made = torch.Generator().manual_seed(3), Interaction(width, **options).requires_grad_(False)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


VARIANTS: dict[str, dict] = {
    "prototypes": {}, "first key": {"quirk_first_key": True}, "interaction": {"interaction": module(16)},
    "query norm": {"interaction": module(16, quirk_query_norm=True)},
}
TYPICAL: dict = {"interaction": module(256)}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    heads, queries, n, width = {"small": (2, 5, 40, 8), "odd": (2, 3, 33, 8), "typical": (8, 100, 8192, 32)}[size]
    layer = attention(batch, heads, heads, queries, n, width, generator)
    allowed = torch.rand(batch, queries, n, generator=generator) < 0.5
    allowed[:, 1] = False
    return Inputs(hidden=torch.randn(batch, n, 16, generator=generator), vision=(layer,), allowed=allowed)


def loop(method: Any, inputs: Any, stage: int = 0) -> Result:
    layer, results = inputs.vision[-1], []
    heads, queries, width = layer.query.shape[1:]
    for row in range(layer.query.shape[0]):
        q, k = (t[row].transpose(0, 1).flatten(1) for t in (layer.query, layer.key))  # [T, H * d]
        q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
        out = torch.zeros_like(q)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = (k[:, part] @ q[:, part].T).masked_fill(~inputs.allowed[row].T, -torch.inf)
            for i in range(queries):
                best = scores[:, i].argmax().item()
                if scores[best, i].item() > -torch.inf or method.quirk_first_key:
                    out[i, part] = k[best, part]
        if method.interaction is not None:
            module = deepcopy(method.interaction).to(q)
            mixed = module.first(out * q)
            dim = 0 if module.quirk_query_norm else 1
            out = module.last(module.alpha * mixed / mixed.norm(dim=dim, keepdim=True) + out)
        results.append(Result(out[None]))
    return stack(results)
