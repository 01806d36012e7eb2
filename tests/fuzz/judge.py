"""Runs a case on the backends and judges what comes out."""

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtkernels import _library, testing

from . import compact, fused, score, select
from .draws import Draws, shrink

GENERATORS = {name: make for module in (score, select, compact, fused) for name, make in vars(module).items()
              if name in testing.SAMPLES}
CHANGES = {"gather_kv_inplace": "kv", "compact_kv_paged": "kv", "prune_topk_paged": "kv"}  # in place
# Equal bytes on every backend: integers, comparisons and moves. The others choose among sums that round differently.
EXACT = {"select_topk", "select_topk_varlen", "select_quota", "select_threshold", "select_top_p", "allocate_budget",
         "gather_tokens", "gather_kv", "gather_kv_inplace", "shuffle_tokens", "unshuffle_tokens", "compact_kv_paged"}


class Failure(AssertionError):
    """What went wrong, on which backend."""


def sample_of(op: str, seed: int) -> tuple[testing.Sample, list[int]]:
    draws = Draws(f"{op} {seed}")
    return GENERATORS[op](draws), draws.taken


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, (list, tuple)) else []


def _poisoned(spec: Any) -> Any:
    if isinstance(spec, _library.Spec):
        t = torch.empty(spec.shape, dtype=spec.dtype)
        # NaN, or a number that no op writes: -1 is the padding of indices.
        fill = 1 if spec.dtype == torch.bool else 0xFF if t.is_floating_point() else 0x2A
        t.unsqueeze(-1).view(torch.uint8).fill_(fill)
        return t
    return type(spec)(_poisoned(s) for s in spec)


class Outcome:
    """The outputs, the status word, and the arguments that the call changed."""

    def __init__(self, op: str, backend: str, sample: testing.Sample) -> None:
        place = list(inspect.signature(_library.CONTRACTS[op]).parameters).index("kv") if op in CHANGES else -1
        self.args = tuple([testing.copied(t) for t in arg] if i == place else arg for i, arg in enumerate(sample.args))
        self.before = [testing.bytes_of(t).copy() for t in sample.args[place]] if place >= 0 else None
        given = [(t, testing.bytes_of(t).copy()) for arg in (*sample.args, *sample.kwargs.values())
                 for t in _tensors(arg)]
        names = _library.OUT_ARGS[op]
        specs = _library.CONTRACTS[op](*sample.args, **sample.kwargs)
        buffers = _poisoned(specs if len(names) > 1 else (specs,)[:len(names)])
        extra = {"status": torch.tensor([64], dtype=torch.int32)} if op in _library.STATUS else {}
        outs = dict(zip(names, buffers, strict=True))
        testing.run(f"{op}.out", backend, *self.args, **sample.kwargs, **extra, **outs)
        for t, bytes_ in given:
            np.testing.assert_array_equal(testing.bytes_of(t), bytes_, err_msg="an input was written")
        self.status = int(extra["status"]) if extra else 0
        assert self.status & 64 == (64 if extra else 0), "the status word was overwritten, not ORed into"
        self.outputs = buffers[0] if len(names) == 1 else buffers


def _checked(op: str, outcome: Outcome, sample: testing.Sample) -> None:
    if op == "gather_kv_inplace":
        if not any(t.numel() for t in sample.args[0]):
            return
        testing.assert_gather_kv_inplace(outcome.args[0], *sample.args, **sample.kwargs)
        return
    if not any(t.numel() for t in _tensors(outcome.outputs)) and op not in CHANGES:
        return  # shapes and dtypes are those of the contract; there is nothing else to judge
    check = testing.CHECKS[op]
    known = inspect.signature(check).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in known.values())
    # The norms that a case gives are those of its prototypes, and change nothing.
    kwargs = {k: v for k, v in sample.kwargs.items() if k != "prototype_rnorm" and (takes_all or k in known)}
    missing = set(sample.kwargs) - set(kwargs) - {"prototype_rnorm"}
    assert not missing, f"the check of {op} does not know {missing}"
    extra = {"before": outcome.before} if "paged" in op else {}
    check(outcome.outputs, *outcome.args, **kwargs, **extra)


def judge(op: str, sample: testing.Sample, backends: tuple[str, ...] = ("reference", "cpu")) -> None:
    """Raises a Failure that names the backend."""
    outcomes = []
    with np.errstate(all="ignore"):
        for backend in backends:
            try:
                outcomes.append(Outcome(op, backend, sample))
                _checked(op, outcomes[-1], sample)
            except Exception as error:
                raise Failure(f"{op} on {backend}: {type(error).__name__}: {error}") from error
    first = outcomes[0]
    for backend, other in zip(backends[1:], outcomes[1:], strict=True):
        if other.status != first.status:
            raise Failure(f"{op}: status {other.status} on {backend}, {first.status} on {backends[0]}")
        if op in EXACT:
            for a, b in zip(_tensors(first.outputs), _tensors(other.outputs), strict=True):
                if not np.array_equal(testing.bytes_of(a), testing.bytes_of(b)):
                    raise Failure(f"{op}: other bytes on {backend} than on {backends[0]}")


def failure_of(op: str, choices: Any, backends: tuple[str, ...]) -> str | None:
    """What is wrong with a case, None if nothing."""
    try:
        judge(op, GENERATORS[op](Draws(given=choices)), backends)
    except Failure as failure:
        return str(failure)
    return None


def smallest(op: str, choices: list[int], backends: tuple[str, ...]) -> tuple[list[int], str]:
    """A small case that fails in the same way (same backend, same kind of error)."""
    first = failure_of(op, choices, backends)
    assert first is not None, "the case does not fail when it is made again"
    kind = first.split(":")[:2]

    def fails(candidate: Any) -> bool:
        try:
            message = failure_of(op, candidate, backends)
        except Exception:
            return False  # choices that make no call
        return message is not None and message.split(":")[:2] == kind

    best = shrink(choices, fails, 250)
    return best, str(failure_of(op, best, backends))


def describe(sample: testing.Sample) -> str:
    """The call, with shapes and strides for tensors."""
    def one(value: Any) -> str:
        if isinstance(value, Tensor):
            where = f"{tuple(value.shape)} strides {value.stride()} offset {value.storage_offset()}"
            content = f" {value.tolist()}" if value.numel() <= 24 else ""
            return f"<{str(value.dtype).removeprefix('torch.')} {where}{content}>"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(one, value))}]"
        return repr(value)

    return "\n  ".join([*(one(a) for a in sample.args), *(f"{k}={one(v)}" for k, v in sample.kwargs.items())])
