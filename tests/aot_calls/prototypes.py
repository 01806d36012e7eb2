"""prototype_topm, prototype_softmax_scores."""

from collections.abc import Iterator

import torch


def _inputs(dtype: torch.dtype, d: int = 3584) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(2, 729, d, dtype=dtype), torch.empty(45, d, dtype=dtype)


def topm(match: dict, dtype: torch.dtype) -> Iterator[tuple[tuple, dict]]:
    for m in (1, 8, 40):
        yield (*_inputs(dtype), m), {}
    yield (*_inputs(dtype, 129), 8), {"metric": "l2"}


def softmax(match: dict, dtype: torch.dtype) -> Iterator[tuple[tuple, dict]]:
    yield _inputs(dtype), {"over_tokens": True}
    yield _inputs(dtype, 129), {"prototype_rnorm": torch.empty(45)}


CALLS = {"prototype_topm": topm, "prototype_softmax_scores": softmax}
FLOATING = set(CALLS)
