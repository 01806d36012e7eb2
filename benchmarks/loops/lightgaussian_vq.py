"""LightGaussian's quantiser: importance-weighted k-means with the matrix of all distances, a codeword at a time."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import stack
from .fqgan import codebooks

VARIANTS: dict[str, dict] = {
    "fit": {"codewords": 5}, "given": {"codebook": codebooks(6, 9), "iterations": 0, "exact": 7},
    "refine": {"codebook": codebooks(6, 9), "iterations": 2},
}
TYPICAL: dict = {"codebook": codebooks(1024, 27), "iterations": 3}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width = {"small": (40, 9), "odd": (53, 9), "typical": (16384, 27)}[size]
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator),
                  scores=torch.rand(batch, n, generator=generator))


def first_centres(rows: torch.Tensor, count: int) -> torch.Tensor:
    chosen = [int(rows.norm(dim=1).argmax())]
    while len(chosen) < count:
        distance = torch.cdist(rows, rows[chosen]).min(1).values
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return rows[chosen]


def loop(method: Any, inputs: Any, stage: int = 0) -> Result:
    n, results = inputs.tokens.shape[1], []
    count = method.exact if isinstance(method.exact, int) else round(method.exact * n)
    for rows, importance in zip(inputs.tokens, inputs.scores, strict=True):
        exact = torch.zeros(n, dtype=torch.bool, device=rows.device)
        exact[importance.topk(count).indices] = True
        book = method.codebook.to(rows) if method.codebook is not None else first_centres(rows, method.codewords)
        book = book.clone()
        for step in range(method.iterations + 1):
            codes = torch.cdist(rows, book).argmin(1)
            if step == method.iterations:
                break
            for k in range(len(book)):
                mine = (codes == k) & ~exact
                if mine.any().item():
                    weights = importance[mine][:, None]
                    book[k] = (weights * rows[mine]).sum(0) / weights.sum()
        hidden = rows.clone()
        for i in range(n):
            if not exact[i].item():
                hidden[i] = book[codes[i]]
        codes[exact] = -1
        results.append(Result(hidden[None], assignment=codes[None], kv=(book[None],)))
    return stack(results)
