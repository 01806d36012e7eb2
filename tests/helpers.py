"""Checks of one call against the oracles, for the test files of single ops."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vtkernels import _library, testing


def samples(op: str) -> Any:
    return pytest.mark.parametrize("sample", list(testing.SAMPLES[op]()), ids=lambda s: s.name)


def poison(spec: Any, index_dtype: torch.dtype | None = None) -> Any:
    """Output buffers full of NaN or -77, so that what is not written shows."""
    if isinstance(spec, _library.Spec):
        dtype = index_dtype if index_dtype and spec.dtype == torch.int64 else spec.dtype
        raw = torch.empty(spec.shape, dtype=dtype)
        if dtype.is_floating_point and raw.element_size() > 1:
            return raw.fill_(torch.nan)
        raw.unsqueeze(-1).view(torch.uint8).fill_(0xB3)
        return raw
    return type(spec)(poison(s, index_dtype) for s in spec)


def run_out(op: str, backend: str, sample: testing.Sample, index_dtype: torch.dtype | None = None,
            **extra: Any) -> tuple:
    """The `.out` variant into poisoned buffers, as the tuple that the functional op would return."""
    specs = _library.CONTRACTS[op](*sample.args, **sample.kwargs)
    names = _library.OUT_ARGS[op]
    outs = poison(specs if len(names) > 1 else (specs,)[:len(names)], index_dtype if "gather" not in op else None)
    result = testing.run(f"{op}.out", backend, *sample.args, **sample.kwargs, **extra,
                         **dict(zip(names, outs, strict=True)))
    assert result is None
    return outs


def flat(outputs: Any) -> Iterator[Tensor]:
    for t in outputs if isinstance(outputs, (list, tuple)) else (outputs,):
        if isinstance(t, Tensor):
            yield t
        elif t is not None:
            yield from t


def assert_same_bytes(got: Any, want: Any) -> None:
    for g, w in zip(flat(got), flat(want), strict=True):
        assert g.shape == w.shape
        assert g.dtype == w.dtype
        np.testing.assert_array_equal(testing.bytes_of(g), testing.bytes_of(w))


def assert_contract(op: str, outputs: Any, sample: testing.Sample) -> None:
    """Shape, dtype and contiguity as the contract says."""
    specs = list(_flat_specs(_library.CONTRACTS[op](*sample.args, **sample.kwargs)))
    for t, spec in zip(flat(outputs), specs, strict=True):
        assert tuple(t.shape) == tuple(spec.shape)
        assert t.dtype == spec.dtype
        assert t.is_contiguous()


def _flat_specs(spec: Any) -> Iterator[_library.Spec]:
    if isinstance(spec, _library.Spec):
        yield spec
    else:
        for s in spec:
            yield from _flat_specs(s)


def assert_refused(op: str, backend: str, args: tuple, kwargs: dict[str, Any], arg: str, got: str) -> None:
    """One clear error: it names the argument, what came and what is allowed."""
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        testing.run(op, backend, *args, **kwargs)
    message = str(error.value)
    assert message.startswith(f"{op}: `{arg}` is "), message
    assert got in message.split(", allowed: ")[0]
    assert len(message.split(", allowed: ")) == 2


def gather_status(op: str, sample: testing.Sample) -> int:
    """The status bits that a gather sets."""
    tensors, indices = sample.args
    if op == "gather_tokens":
        dim = (sample.kwargs.get("token_dims") or [1])[0]
    else:
        dim = 2 if sample.kwargs.get("kv_layout", "HND") == "HND" else 1
    first = torch.arange(indices.shape[-1]) if op == "gather_kv_inplace" else 0
    bad = (indices < first) | (indices >= tensors[0].shape[dim])
    return _library.STATUS_BAD_INDEX if bad.any() else 0
