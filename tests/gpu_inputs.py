"""Inputs of the GPU suite: one shape per op with other values and metadata for each seed, and tensors laid out so that
offsets pass 2**31 elements. They need no GPU themselves; test_gpu_inputs.py runs them on the CPU."""

from collections.abc import Callable
from typing import Any

import torch
from helpers import flat
from torch import Tensor

from vtkernels import _library, testing
from vtkernels.testing import Sample, clustered, rand

FAR = 2**31  # elements
IN_PLACE = ("gather_kv_inplace", "compact_kv_paged", "prune_topk_paged")  # these write to their caches
DISTINCT = ("dequantize_kv",)  # no token twice in a class: which of the two is kept is not defined


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [t for part in parts for t in tensors(part)]


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of lists, tuples and dicts with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: mapped(v, change) for name, v in value.items()}
    return type(value)(mapped(v, change) for v in value) if isinstance(value, (list, tuple)) else value


def results(op: str, outputs: Any, args: Any) -> list[Tensor]:
    """Everything that a call has written: what it returns, and the caches that it changed."""
    caches = next(a for a in args if isinstance(a, (list, tuple))) if op in IN_PLACE else []
    return [*(flat(outputs) if outputs is not None else []), *caches]


def fresh(op: str, seed: int) -> Sample:
    """Inputs of one shape per op, other values for each seed; metadata on the device is at times out of range."""
    generator = torch.Generator().manual_seed(seed)

    def ints(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    dtype = torch.bfloat16
    hidden, protos = clustered(260, 64, dtype=dtype, seed=seed), clustered(9, 64, dtype=dtype, seed=seed + 1)
    if op == "prototype_scores":
        return Sample(op, (hidden.view(2, 130, 64), protos), {})
    if op == "select_topk":
        return Sample(op, ((rand(3, 700, seed=seed) * 4).round(), 200), {"largest": False})
    if op == "gather_tokens":
        ids = ints(0, 2**40, 3, 2, 130)
        return Sample(op, ([hidden.view(2, 130, 64), ids], ints(-2, 133, 2, 40)), {"token_dims": [1, 2]})
    kv = [rand(2, 4, 130, 16, dtype=dtype, seed=seed + s) for s in range(6)]
    if op == "gather_kv":
        return Sample(op, (kv, ints(-2, 133, 2, 40).int()), {})
    if op == "prune_topk":
        return Sample(op, (hidden.view(2, 130, 64), protos, 25, kv),
                      {"span_starts": ints(-5, 36, 2).int(), "span_len": 100})
    if op != "prune_topk_varlen":
        return shaken(op, seed)
    cu = torch.cat([torch.zeros(1, dtype=torch.int64), ints(0, 270, 3).sort().values]).int()
    packed = [t.flatten(0, 1)[:4].repeat(1, 2, 1) for t in kv]
    return Sample(op, (hidden, protos, cu, ints(-3, 60, 3).int(), 120, packed), {})


def shaken(op: str, seed: int) -> Sample:
    """The largest sample of an op with its floating-point tensors scaled, each by a factor of its own, and a
    tenth of its integers replaced, some of them by numbers that are out of range."""
    sample = max(testing.SAMPLES[op](), key=lambda s: sum(t.numel() for t in tensors((s.args, s.kwargs))))
    generator = torch.Generator().manual_seed(seed)

    def shake(value: Tensor) -> Tensor:
        if value.is_floating_point():
            return (value.float() * (0.5 + torch.rand(value.shape, generator=generator))).to(value.dtype)
        if value.dtype not in (torch.int32, torch.int64) or not value.numel() or seed == 0:
            return value
        low, high = int(value.min()) - 2, int(value.max()) + 3
        other = torch.randint(low, high, value.shape, generator=generator).to(value.dtype)
        if op in DISTINCT:
            value, other = value.flip(-1), other % 2 * (high + 2) - 2
        return torch.where(torch.rand(value.shape, generator=generator) < 0.1, other, value)

    return Sample(op, mapped(sample.args, shake), mapped(sample.kwargs, shake))


def spread(sample: Sample, allocate: Callable[[int], Tensor]) -> Sample | None:
    """The sample with its largest tensor laid out over more than 2**31 elements: its first dimension of two or more has
    a stride that puts the last item beyond. `allocate` gives that many bytes. None where no tensor can be spread."""
    wide = [t for t in tensors(sample.args) if t.numel() and max(t.shape) > 1]
    if not wide:
        return None
    chosen = max(wide, key=lambda t: t.numel() * t.element_size())

    def lay(value: Tensor) -> Tensor:
        return far(value, allocate) if value is chosen else value

    return Sample(sample.name, mapped(sample.args, lay), sample.kwargs)


def far(value: Tensor, allocate: Callable[[int], Tensor]) -> Tensor:
    dim = next(i for i, size in enumerate(value.shape) if size > 1)
    rest = value[(0,) * dim].contiguous()
    inner = rest[0].numel()
    step = max(inner, -(-FAR // (value.shape[dim] - 1)) + 63) // 64 * 64  # rows stay aligned
    total = (value.shape[dim] - 1) * step + inner
    memory = allocate(total * value.element_size()).view(value.dtype)
    strides = [total] * dim + [step, *rest[0].stride()]
    return memory.as_strided(value.shape, strides).copy_(value)


def checked(op: str, sample: Sample, args: Any, kwargs: Any, outputs: Any, before: list | None) -> None:
    """The outputs of a call on `args` against the oracles, as the sample was before."""
    if op == "gather_kv_inplace":
        testing.assert_gather_kv_inplace(args[0], *sample.args, **sample.kwargs)
    elif op in IN_PLACE:
        testing.CHECKS[op](outputs, *args, before=before, **kwargs)
    else:
        testing.CHECKS[op](outputs, *sample.args, **sample.kwargs)


def pools_before(op: str, sample: Sample) -> list | None:
    """The bytes of the pools of pages, before a call."""
    caches = next((a for a in sample.args if isinstance(a, list)), None)
    return [testing.bytes_of(t).copy() for t in caches] if op in IN_PLACE and caches else None


ALL = tuple(testing.SAMPLES)
RETURNING = tuple(op for op in ALL if _library.OUT_ARGS[op])
