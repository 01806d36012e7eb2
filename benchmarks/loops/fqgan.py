"""FQGAN's quantiser, codebook by codebook, with the matrix of all distances."""

from typing import Any

import torch
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result

from . import stack


def codebooks(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


VARIANTS: dict[str, dict] = {"dual": {"codebooks": codebooks(2, 40, 6)}, "triple": {"codebooks": codebooks(3, 25, 4)}}
TYPICAL: dict = {"codebooks": codebooks(2, 16384, 8)}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, width = {"small": (36, 12), "odd": (51, 12), "typical": (256, 16)}[size]
    return Inputs(hidden=torch.randn(batch, n, width, generator=generator))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    results = []
    for tokens in inputs.tokens:
        hidden, codes, scores = [], [], []
        for part, book in zip(tokens.chunk(len(method.codebooks), -1), method.codebooks.to(tokens), strict=True):
            z, e = F.normalize(part, dim=-1), F.normalize(book, dim=-1)
            distance = z.pow(2).sum(1, keepdim=True) + e.pow(2).sum(1) - 2 * z @ e.T
            code = distance.argmin(1)
            hidden.append(e[code])
            codes.append(code)
            scores.append(1 - distance.min(1).values / 2)
        results.append(Result(torch.cat(hidden, -1)[None], assignment=torch.stack(codes, -1)[None],
                              scores=torch.stack(scores, -1)[None]))
    return stack(results)
