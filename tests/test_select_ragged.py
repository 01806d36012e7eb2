"""select_threshold, select_top_p and allocate_budget on the backends of the CPU: exact."""

import pytest
import torch
from helpers import assert_contract, assert_refused, assert_same_bytes, flat, run_out

from vtkernels import testing

OPS = ("select_threshold", "select_top_p", "allocate_budget")
ALL = pytest.mark.parametrize(("op", "sample"), [
    pytest.param(op, s, id=f"{op}-{s.name}") for op in OPS for s in testing.SAMPLES[op]()])
SCORES = testing.rand(2, 9).abs()
NAN = float("nan")


@ALL
def test_exact(backend, op, sample):
    outs = testing.run(op, backend, *sample.args, **sample.kwargs)
    assert_contract(op, outs, sample)
    testing.CHECKS[op](outs, *sample.args, **sample.kwargs)


@ALL
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_out_variant(backend, op, sample, index_dtype):
    outs = run_out(op, backend, sample, index_dtype)
    testing.CHECKS[op](outs if len(outs) > 1 else outs[0], *sample.args, **sample.kwargs)


@pytest.mark.parametrize(("op", "args", "kwargs"), [
    ("select_threshold", (0.4,), {"min_keep": 3}), ("select_top_p", (0.6,), {}), ("allocate_budget", (1000,), {})])
def test_a_row_does_not_depend_on_its_neighbours_and_repeats(backend, op, args, kwargs):
    scores = testing.rand(4, 300).abs()
    both = testing.run(op, backend, scores, *args, **kwargs)
    assert_same_bytes(both, testing.run(op, backend, scores, *args, **kwargs))
    for b in range(4):
        alone = next(flat(testing.run(op, backend, scores[b:b + 1], *args, **kwargs)))
        assert torch.equal(alone, next(flat(both))[b:b + 1])


def test_out_may_be_a_slice_of_a_larger_buffer(backend):
    buffer, counts = torch.full((2, 20), -7), torch.full((4,), -7, dtype=torch.int32)
    cu = torch.full((5,), -7, dtype=torch.int32)
    testing.run("select_threshold.out", backend, SCORES, 0.5, out_indices=buffer[:, 3:12], out_counts=counts[1:3],
                out_cu_seqlens=cu[1:4])
    testing.CHECKS["select_threshold"]((buffer[:, 3:12], counts[1:3], cu[1:4]), SCORES, 0.5)
    assert (buffer[:, :3] == -7).all()
    assert (buffer[:, 12:] == -7).all()
    assert counts[[0, 3]].tolist() + cu[[0, 4]].tolist() == [-7] * 4


def test_budgets_add_up(backend):
    weights = testing.rand(50, 33).abs()
    for total in (0, 7, 32, 33, 1000):
        out = testing.run("allocate_budget", backend, weights, total, minimum=total // 40)
        assert (out.sum(-1) == total).all()
        assert (out >= total // 40).all()


@pytest.mark.parametrize(("op", "args", "kwargs", "arg", "got"), [
    ("select_threshold", (SCORES, NAN), {}, "threshold", "nan"),
    ("select_threshold", (SCORES.half(), 0.0), {}, "scores", "float16"),
    ("select_threshold", (SCORES, 0.0), {"min_keep": 10}, "min_keep", "10"),
    ("select_threshold", (SCORES, 0.0), {"thresholds": torch.zeros(3)}, "thresholds", "3"),
    ("select_threshold", (SCORES, 0.0), {"thresholds": torch.zeros(2).double()}, "thresholds", "float64"),
    ("select_top_p", (SCORES, 0.0), {}, "p", "0"),
    ("select_top_p", (SCORES, 1.5), {}, "p", "1.5"),
    ("select_top_p", (SCORES, NAN), {}, "p", "nan"),
    ("select_top_p", (SCORES, 0.5), {"min_keep": -1}, "min_keep", "-1"),
    ("select_top_p", (SCORES[0], 0.5), {}, "scores", "(9,)"),
    ("allocate_budget", (SCORES, -1), {}, "total", "-1"),
    ("allocate_budget", (SCORES, 2**31), {}, "total", "2147483648"),
    ("allocate_budget", (SCORES[:, :0], 1), {}, "total", "1"),
    ("allocate_budget", (SCORES, 20), {"minimum": 3}, "minimum", "3"),
    ("allocate_budget", (SCORES.double(), 20), {}, "weights", "float64"),
    ("allocate_budget", (SCORES, 20), {"capacity": SCORES}, "capacity", "float32"),
    ("allocate_budget", (SCORES, 20), {"capacity": SCORES[:1].int()}, "capacity", "(1, 9)"),
])
def test_refused(backend, op, args, kwargs, arg, got):
    assert_refused(op, backend, args, kwargs, arg, got)
