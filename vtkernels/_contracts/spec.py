"""Outputs before they exist, and what every contract shares."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Spec(NamedTuple):
    """An output before it exists."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def allocate(spec: Any) -> Any:
    """Contiguous, uninitialised tensors for a spec, or for a tuple or list of specs. None where there is no output."""
    if spec is None:
        return None
    if isinstance(spec, Spec):
        return torch.empty(spec.shape, dtype=spec.dtype, device=spec.device)
    return type(spec)(allocate(s) for s in spec)


def with_tokens(t: Tensor, token_dim: int, tokens: Any) -> Spec:
    return Spec((*t.shape[:token_dim], tokens, *t.shape[token_dim + 1:]), t.dtype, t.device)
