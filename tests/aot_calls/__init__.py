"""Calls of the ops that are compiled ahead of time: for each op, what a tuning entry and a dtype are called with.

A module per family has `CALLS`, a function per op that yields (args, kwargs) on empty tensors: one call for each kernel
that the arguments can select. Its `FLOATING` names the ops whose kernels depend on the dtype.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import torch

from vtkernels import _dispatch, _library

CALLS: dict[str, Callable[..., Iterator[tuple[tuple, dict[str, Any]]]]] = {}
FLOATING: set[str] = set()
for _module in pkgutil.iter_modules(__path__):
    _family = importlib.import_module(f"{__name__}.{_module.name}")
    CALLS |= _family.CALLS
    FLOATING |= _family.FLOATING


def run(op: str, match: dict[str, Any], dtype: torch.dtype) -> None:
    """Call the Triton launcher of an op with the sizes of a tuning entry, `out` buffers from the contract."""
    module = importlib.import_module(f"vtkernels.{_dispatch.STAGES[op]}.{op}.triton")
    names = _library.OUT_ARGS[op]
    for args, kwargs in CALLS[op](match, dtype):
        status = {"status": kwargs.pop("status")} if "status" in kwargs else {}
        outs = _library.allocate(_library.CONTRACTS[op](*args, **kwargs))
        buffers = dict(zip(names, outs if len(names) > 1 else (outs,)[:len(names)], strict=True))
        getattr(module, f"{op}_out")(*args, **kwargs, **buffers, **status)
