"""One call of an op with all of its tensors guarded, twice, into buffers full of other bytes."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtkernels import _library, testing

from .memory import Guarded

POISON = (0xFF, 0x2A)  # NaN or -1, then numbers


class Memory:
    """The guarded tensors of one call."""

    def __init__(self, edge: str) -> None:
        self.edge = edge
        self.inputs: list[Guarded] = []
        self.written: list[Guarded] = []

    def guard(self, value: Any, written: bool = False) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self.guard(v, written) for v in value)
        if not isinstance(value, Tensor):
            return value
        one = Guarded(value, self.edge)
        (self.written if written else self.inputs).append(one)
        return one.tensor

    def buffers(self, spec: Any, fill: int) -> Any:
        if not isinstance(spec, _library.Spec):
            return type(spec)(self.buffers(s, fill) for s in spec)
        one = Guarded(torch.empty(spec.shape, dtype=spec.dtype), self.edge, fill)
        self.written.append(one)
        return one.tensor


def call(op: str, backend: str, sample: testing.Sample, edge: str, poison: int,
         run: Callable[..., Any] = testing.run) -> tuple[Any, tuple]:
    """The outputs, and the arguments as the call left them."""
    memory = Memory(edge)
    contract = inspect.signature(_library.CONTRACTS[op])
    changed = [name for name in contract.parameters if f"!)[] {name}" in _library.SCHEMAS[op].split("->")[0]]
    specs = _library.CONTRACTS[op](*sample.args, **sample.kwargs)
    names = _library.OUT_ARGS[op]
    named = zip(contract.parameters, sample.args, strict=False)
    args = tuple(memory.guard(arg, name in changed) for name, arg in named)
    kwargs = {name: memory.guard(value) for name, value in sample.kwargs.items()}
    outs = memory.buffers(specs if len(names) > 1 else (specs,)[:len(names)], poison)
    words = {}
    if op in _library.STATUS:
        words["status"] = memory.guard(torch.zeros(1, dtype=torch.int32), written=True)
    if op in _library.WORKSPACE:
        size = _library.WORKSPACE[op](*sample.args, **sample.kwargs)
        words["workspace"] = memory.guard(torch.zeros(size, dtype=torch.int32), written=True)
    for guarded in memory.inputs:
        guarded.read_only()
    run(f"{op}.out", backend, *args, **kwargs, **words, **dict(zip(names, outs, strict=True)))
    for guarded in (*memory.inputs, *memory.written):
        guarded.assert_canaries(op)
    if "workspace" in words:
        assert not words["workspace"].any(), "the workspace was not left zeroed"
    return outs, args


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for v in value for t in flat(v)]


def check(op: str, backend: str, sample: testing.Sample, edge: str, run: Callable[..., Any] = testing.run) -> None:
    """The same bytes, whatever the buffers held before: all of them were written."""
    (first, changed), (second, again) = (call(op, backend, sample, edge, poison, run) for poison in POISON)
    for a, b in zip(flat([*first, *_lists(changed)]), flat([*second, *_lists(again)]), strict=True):
        left = int((testing.bytes_of(a) != testing.bytes_of(b)).sum())
        assert left == 0, f"{op}: {left} bytes of an output depend on what was there before, or were not written"
    plain = sample._replace(args=tuple([testing.copied(t) for t in a] if _is_list(a) else a for a in sample.args))
    with np.errstate(all="ignore"):
        _same_as_unguarded(op, backend, plain, first, changed)


def _is_list(arg: Any) -> bool:
    return isinstance(arg, list) and all(isinstance(t, Tensor) for t in arg)


def _lists(args: tuple) -> list:
    return [arg for arg in args if _is_list(arg)]


def _same_as_unguarded(op: str, backend: str, sample: testing.Sample, outs: Any, changed: tuple) -> None:
    """Where a buffer lies changes nothing."""
    specs = _library.CONTRACTS[op](*sample.args, **sample.kwargs)
    names = _library.OUT_ARGS[op]
    plain = _library.allocate(specs if len(names) > 1 else (specs,)[:len(names)])
    testing.run(f"{op}.out", backend, *sample.args, **sample.kwargs, **dict(zip(names, plain, strict=True)))
    for a, b in zip(flat([*plain, *_lists(sample.args)]), flat([*outs, *_lists(changed)]), strict=True):
        np.testing.assert_array_equal(testing.bytes_of(a), testing.bytes_of(b))
