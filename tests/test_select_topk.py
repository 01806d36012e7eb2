"""select_topk on the backends of the CPU: exact positions."""

import pytest
import torch
from helpers import assert_contract, assert_refused, run_out, samples

from vtkernels import testing

OP = "select_topk"
SCORES = testing.rand(2, 9)
BOOL = torch.zeros(2, 9, dtype=torch.bool)


@samples(OP)
def test_exact(backend, sample):
    out = testing.run(OP, backend, *sample.args, **sample.kwargs)
    assert_contract(OP, out, sample)
    testing.CHECKS[OP](out, *sample.args, **sample.kwargs)


@samples(OP)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_out_variant_equals_functional(backend, sample, index_dtype):
    (out,) = run_out(OP, backend, sample, index_dtype)
    assert out.tolist() == testing.run(OP, backend, *sample.args, **sample.kwargs).tolist()


def test_out_may_be_a_slice_of_a_larger_buffer(backend):
    for options in ({}, {"order": "score"}, {"excluded": torch.zeros(3, 50, dtype=torch.bool)}):
        buffer = torch.full((3, 9), -7)
        scores = testing.rand(3, 50)
        testing.run("select_topk.out", backend, scores, 4, **options, out=buffer[:, 2:6])
        assert buffer[:, 2:6].tolist() == testing.oracle_topk(scores, 4, **options)
        assert (buffer[:, :2] == -7).all()
        assert (buffer[:, 6:] == -7).all()


def test_a_row_does_not_depend_on_its_neighbours_and_repeats(backend):
    scores = (testing.rand(5, 700) * 9).round()
    protected = testing.rand(5, 700, seed=1) > 1
    both = testing.run(OP, backend, scores, 99, protected=protected, order="score")
    assert torch.equal(both, testing.run(OP, backend, scores, 99, protected=protected, order="score"))
    for b in range(5):
        alone = testing.run(OP, backend, scores[b:b + 1], 99, protected=protected[b:b + 1], order="score")
        assert torch.equal(both[b:b + 1], alone)


@pytest.mark.parametrize("kind", ["two values", "few values", "sorted", "reversed", "one large", "one small", "runs"])
@pytest.mark.parametrize("n", [129, 1000, 20011])
def test_distributions(backend, n, kind):
    """Inputs on which a search by samples goes wrong or makes no progress."""
    ramp = torch.arange(n, dtype=torch.float32)
    scores = {"two values": (testing.rand(n) > 0.7).float(), "few values": (testing.rand(n) * 3).round(),
              "sorted": ramp, "reversed": -ramp, "one large": (ramp == n // 3) * 1e30, "one small": (ramp != 5) * 1.0,
              "runs": (ramp / 200).floor() % 7}[kind][None]
    for k in (1, 5, n // 4, n // 2, n - 1):
        for largest in (True, False):
            assert testing.run(OP, backend, scores, k, largest=largest).tolist() == testing.oracle_topk(
                scores, k, largest)


@pytest.mark.parametrize(("args", "kwargs", "arg", "got"), [
    ((SCORES, 10), {}, "k", "10"),
    ((SCORES.double(), 1), {}, "scores", "float64"),
    ((SCORES, 1), {"ks": torch.zeros(2)}, "ks", "float32"),
    ((SCORES, 1), {"ks": torch.zeros(3, dtype=torch.int32)}, "ks", "3"),
    ((SCORES, 1), {"protected": BOOL.int()}, "protected", "int32"),
    ((SCORES, 1), {"excluded": BOOL[:1]}, "excluded", "(1, 9)"),
    ((SCORES, 1), {"order": "random"}, "order", "'random'"),
])
def test_refused(backend, args, kwargs, arg, got):
    assert_refused(OP, backend, args, kwargs, arg, got)
