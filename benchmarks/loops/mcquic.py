"""McQuic's quantiser, group by group and level by level, with the matrix of all distances."""

from typing import Any

import torch
from torch import Tensor

import vtkernels
from vtkernels.methods import Inputs, Result

from . import stack
from .fqgan import codebooks


def halve(tokens: Tensor, found: Tensor, level: int) -> Tensor:
    """Stands for the model's layers: what is left, two tokens a mean."""
    return vtkernels.pool_span(tokens - found, 2)


VARIANTS: dict[str, dict] = {
    "one level": {"codebooks": (codebooks(3, 30, 4),)},
    "levels": {"codebooks": (codebooks(2, 30, 6), codebooks(2, 20, 6), codebooks(2, 9, 6)), "descend": halve},
}
TYPICAL: dict = {"codebooks": (codebooks(2, 8192, 64), codebooks(2, 2048, 64), codebooks(2, 512, 64)),
                 "descend": halve}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width = {"small": (32, 12), "odd": (44, 12), "typical": (1024, 128)}[size]
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    results = []
    for tokens in inputs.tokens:
        levels = []
        for books in method.codebooks:
            hidden, codes, scores = [], [], []
            for part, book in zip(tokens.chunk(len(books), -1), books.to(tokens), strict=True):
                distance = part.pow(2).sum(1, keepdim=True) + book.pow(2).sum(1) - 2 * part @ book.T
                code = distance.argmin(1)
                hidden.append(book[code])
                codes.append(code)
                scores.append(-distance.min(1).values)
            levels.append((torch.cat(hidden, -1), torch.stack(codes, -1), torch.stack(scores, -1)))
            left = tokens - levels[-1][0]
            tokens = torch.stack([(left[i] + left[i + 1]) / 2 for i in range(0, len(left) // 2 * 2, 2)])
        parts = [torch.cat(part)[None] for part in zip(*levels, strict=True)]
        results.append(Result(parts[0], assignment=parts[1], scores=parts[2]))
    return stack(results)
