"""What every method must do: for `test_methods.py` and, on Triton's kernels, `interpreted/test_methods_*.py`."""

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks import loops
from vtkernels import _triton, methods
from vtkernels.methods._inputs import map_tensors

FLOAT_FIELDS = ("hidden", "sizes", "scores", "positions")


def cases(family: str | None = None, long_after_first: bool = False) -> list[Any]:
    """(method, configuration, stage) of every variant; all but the first of a method may belong to the long suite."""
    found = []
    for name in methods.list(family):
        for i, (variant, config) in enumerate(loops.loop_of(name).VARIANTS.items()):
            staged = len(methods.get(name, **config).stages)
            marks = [pytest.mark.long] if long_after_first and i else []
            found += [pytest.param(name, config, stage, marks=marks,
                                   id=f"{name}-{variant}-{stage}" if staged else f"{name}-{variant}")
                      for stage in range(max(1, staged))]
    return found


def widened(value: Any) -> Any:
    return map_tensors(value, lambda t: t.double() if t.is_floating_point() else t)


def rows_of(value: Any, start: int, end: int) -> Any:
    return map_tensors(value, lambda t: t[start:end])


def each_field(got: methods.Result, want: methods.Result) -> Iterator[tuple[str, Tensor, Tensor]]:
    for field in fields(methods.Result):
        a, b = getattr(got, field.name), getattr(want, field.name)
        if field.name in ("mask_mod", "score_mod"):
            continue
        assert (a is None) == (b is None), f"{field.name}: {'missing' if a is None else 'not in the reference'}"
        if isinstance(a, Tensor):
            yield field.name, a, b
        elif a is not None:
            assert len(a) == len(b), field.name
            yield from ((f"{field.name}[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True)))


def assert_close(got: methods.Result, want: methods.Result) -> None:
    """The same tokens, exactly; the same values within float32 rounding."""
    for name, a, b in each_field(got, want):
        assert a.shape == b.shape, f"{name}: {tuple(a.shape)}, not {tuple(b.shape)}"
        if a.is_floating_point():
            finite = b[b.isfinite()].abs()
            torch.testing.assert_close(a.double(), b.double(), rtol=2e-5, equal_nan=True,
                                       atol=2e-5 * float(finite.max() if finite.numel() else 0),
                                       msg=lambda text, name=name: f"{name}: {text}")
        else:
            assert torch.equal(a.long(), b.long()), f"{name}: {a.tolist()}, not {b.tolist()}"


def assert_bitwise(got: methods.Result, want: methods.Result) -> None:
    """NaN included."""
    for name, a, b in each_field(got, want):
        assert a.shape == b.shape, name
        assert a.dtype == b.dtype, name
        same = a.eq(b) | (a.ne(a) & b.ne(b)) if a.is_floating_point() else a.eq(b)
        assert bool(same.all()), f"{name} differs"


def assert_valid(result: methods.Result, tokens: int) -> None:
    """Positions that exist, ascending, distinct, and none past the counts."""
    if result.indices is None or result.indices.shape[-1] == 0:
        return
    flat = result.indices.flatten(0, -2)
    counts = result.counts.long() if result.counts is not None else torch.full((flat.shape[0],), flat.shape[1])
    assert bool(((counts >= 0) & (counts <= flat.shape[1])).all())
    for row, count in zip(flat, counts.repeat_interleave(flat.shape[0] // counts.shape[0]), strict=True):
        kept = row[:count]
        assert bool((row[count:] == -1).all())
        assert bool(((kept >= 0) & (kept < tokens)).all()), row.tolist()
        assert bool((kept.diff() > 0).all()), row.tolist()


def poisoned(inputs: methods.Inputs, what: str) -> methods.Inputs:
    """Hostile values in the first row of every signal: the others must not notice."""
    values = {"nan": torch.nan, "inf": torch.inf, "zero": 0.0, "equal": 1.0}

    def spoil(t: Tensor) -> Tensor:
        if not t.is_floating_point() or not t.numel():
            return t
        t = t.clone()
        if what in ("nan", "inf"):
            t[0].view(-1)[::7] = values[what]
        else:
            t[0] = values[what]
        return t

    return map_tensors(inputs, spoil)


@cache
def example(name: str, size: str, batch: int, seed: int = 0) -> methods.Inputs:
    return loops.make(name, size, batch, seed)


def check_reference(name: str, config: dict, stage: int, size: str = "small", batch: int = 3) -> None:
    method, inputs = methods.get(name, **config), example(name, size, batch)
    assert_close(method(inputs, stage=stage), loops.loop_of(name).loop(method, widened(inputs), stage))


class TorchProducts(TorchFunctionMode):
    """Whether a method multiplies matrices through torch, whose blocking, and so its rounding, depends on the batch."""

    NAMES = ("matmul", "__matmul__", "mm", "bmm", "baddbmm", "einsum", "linear", "scaled_dot_product_attention")
    seen = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen |= getattr(function, "__name__", "") in self.NAMES
        return function(*args, **(kwargs or {}))


def check_rows(name: str, config: dict, stage: int) -> None:
    """A row's result is bitwise the same alone and in any batch, of one length or of several; but for torch's own
    matrix products, where a method has one."""
    method, inputs = methods.get(name, **config), example(name, "small", 3)
    with TorchProducts() as products:
        whole = method(inputs, stage=stage)
    assert_same = assert_close if products.seen else assert_bitwise
    for row in range(3):
        assert_same(method(rows_of(inputs, row, row + 1), stage=stage), rows_of(whole, row, row + 1))
    other = example(name, "odd", 1)
    mixed = methods.batch(method, [rows_of(inputs, 0, 1), other, rows_of(inputs, 1, 3)], stage=stage)
    for got, want in zip(mixed, (rows_of(whole, 0, 1), method(other, stage=stage), rows_of(whole, 1, 3)), strict=True):
        assert_same(got, want)


def check_hostile(name: str, config: dict, stage: int) -> None:
    method, inputs = methods.get(name, **config), example(name, "small", 2)
    clean = method(inputs, stage=stage)
    for what in ("nan", "inf", "zero", "equal"):
        result = method(poisoned(inputs, what), stage=stage)
        keys = inputs.tokens.shape[1] if inputs.hidden is not None else inputs.decoder[-1].key.shape[2]
        assert_valid(result, keys)
        assert_bitwise(rows_of(result, 1, 2), rows_of(clean, 1, 2))
        assert_bitwise(method(poisoned(inputs, what), stage=stage), result)


def without(inputs: methods.Inputs, need: str) -> methods.Inputs:
    return replace(inputs, **{need: () if isinstance(getattr(inputs, need), tuple) and need != "grid" else None})


def interpreted_tests(family: str) -> Any:
    """The test of `interpreted/test_methods_<family>.py`: each method of the family on Triton's kernels, its first
    variant in `make test`, the others in the long suite."""

    @pytest.mark.parametrize(("name", "config", "stage"), cases(family, long_after_first=True))
    def test(name, config, stage, monkeypatch):
        launched = []
        launch = _triton.launch

        def recorded(*args, **options):
            launched.append(args[0])
            launch(*args, **options)

        monkeypatch.setattr(_triton, "launch", recorded)
        check_reference(name, config, stage, batch=2)
        assert launched or not methods.methods()[name].kernels

    return test
