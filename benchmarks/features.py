"""Tokens and prototypes: the published codebook where its width fits, generated clusters elsewhere."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vtkernels.testing import clustered

from .case import Case

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CODEBOOK = SHARED / "redundancy_codebook_llava_onevision_7b.safetensors"


@cache
def published_codebook() -> Tensor | None:
    """[45, 3584] prototypes of a real model, or None where the file is not at hand."""
    if not CODEBOOK.is_file():
        return None
    from safetensors.torch import load_file
    return load_file(str(CODEBOOK))["prototypes"].float()


def features(case: Case) -> tuple[Tensor, Tensor, str]:
    """[T, D] tokens, [P, D] prototypes, and where they come from. Tokens lie near prototypes, some more than others."""
    book = published_codebook()
    pick = torch.Generator().manual_seed(1)
    if book is not None and book.shape[1] == case.D:
        prototypes, source = book[:case.P], "published codebook"
        if len(book) < case.P:
            pairs = torch.randint(len(book), (case.P - len(book), 2), generator=pick)
            prototypes = torch.cat([book, book[pairs[:, 0]] + book[pairs[:, 1]]])
            source = f"published codebook and {len(pairs)} sums of two entries"
    else:
        prototypes, source = clustered(case.P, case.D, seed=2), "generated clusters"
    nearest = torch.randint(case.P, (case.tokens,), generator=pick)
    tokens = clustered(case.tokens, case.D, seed=6)
    tokens += torch.rand(case.tokens, 1, generator=pick) * prototypes[nearest]
    return tokens.to(case.dtype), prototypes.to(case.dtype), source
