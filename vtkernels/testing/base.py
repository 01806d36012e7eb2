"""Calls on one backend, seeded inputs, raw bytes."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _dispatch


def run(name: str, backend: str, *args: Any, **kwargs: Any) -> Any:
    """Run an op or `.out` variant on one backend, whatever the order; raises with the reason when it cannot run."""
    tensor = next(_dispatch._tensors((*args, *kwargs.values())))
    reason = _dispatch.refusal(backend, tensor.device.type, name.removesuffix(".out"))
    if reason:
        raise RuntimeError(f"{name} on {backend}: {reason}")
    return _dispatch.function(name, backend)(*args, **kwargs)


class Sample(NamedTuple):
    """One call of an op."""

    name: str
    args: tuple
    kwargs: dict[str, Any]


def rand(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def clustered(n: int, d: int, centres: int = 7, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """[n, d] tokens around a few directions: the cosines crowd together, as those of real features do."""
    base = rand(centres, d, seed=seed)
    pick = torch.randint(centres, (n,), generator=torch.Generator().manual_seed(seed + 1))
    return (base[pick] + 0.3 * rand(n, d, seed=seed + 2)).to(dtype)


def hostile_tokens(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[n, d], n >= 12: NaN, infinities, signed zeros, zero rows, equal rows, tiny and huge norms among normal rows."""
    x = rand(n, d, dtype=torch.float32)
    x[0, 0] = float("nan")
    x[1] = float("inf")
    x[2] = -float("inf")
    x[3] = 0.0
    x[4] = -0.0
    x[5] = x[6]
    x[7] *= 1e-4
    x[8] *= 100
    x[9] = 1e-30 if dtype != torch.float16 else 0.0
    x[10] = 3e38 if dtype != torch.float16 else 6e4
    x[11, -1] = -float("inf")
    return x.to(dtype)


def padded(t: Tensor, pad: int) -> Tensor:
    """The same values in rows that are `pad` elements longer, offset by one element."""
    wide = t.new_zeros((*t.shape[:-1], t.shape[-1] + pad))
    wide[..., 1:1 + t.shape[-1]] = t
    return wide[..., 1:1 + t.shape[-1]]


def bytes_of(t: Tensor) -> np.ndarray:
    """Raw bytes, last axis per element, for exact comparison of any dtype."""
    return t.detach().cpu().contiguous().unsqueeze(-1).view(torch.uint8).numpy()
