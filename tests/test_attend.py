"""cell_attention, argmax_attention and em_attention on the backends of the CPU."""

import doctest

import pytest
import torch
from helpers import assert_contract, assert_refused, assert_same_bytes, run_out

import vtkernels
from vtkernels import testing
from vtkernels.attend import em, em_attention

OPS = ("cell_attention", "argmax_attention")
CASES = [pytest.param(op, s, id=f"{op}-{s.name}") for op in OPS for s in testing.SAMPLES[op]()]
Q, K = testing.rand(2, 3, 4, 8), testing.rand(2, 3, 16, 8, seed=1)


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_values(backend, op, sample):
    outputs = testing.run(op, backend, *sample.args, **sample.kwargs)
    assert_contract(op, outputs, sample)
    testing.CHECKS[op](outputs, *sample.args, **sample.kwargs)


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_out_variant_equals_functional(backend, op, sample):
    outs = run_out(op, backend, sample)
    assert_same_bytes(outs, testing.run(op, backend, *sample.args, **sample.kwargs))


def test_a_cell_does_not_depend_on_the_others(backend):
    want = testing.run("cell_attention", backend, Q, K, K, 4, 2)
    other = K.clone()
    other[:, :, [0, 1, 4, 5]] = torch.nan  # the first cell
    got = testing.run("cell_attention", backend, Q, other, other, 4, 2)
    assert torch.equal(got[:, :, 1:], want[:, :, 1:])
    assert got[:, :, 0].isnan().all()


def test_the_best_key_of_ties_is_the_lowest(backend):
    key = torch.tensor([[[[1.0, 0.0], [2.0, 0.0], [2.0, 0.0], [-0.0, 5.0]]]])
    query = torch.tensor([[[[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]]])
    _, indices = testing.run("argmax_attention", backend, query, key)
    assert indices.tolist() == [[[1, 3, 0]]]


def test_em_attention_against_loops():
    tokens = testing.clustered(60, 10).view(2, 30, 10)
    start = torch.nn.functional.normalize(testing.rand(4, 10), dim=-1)
    rebuilt, bases = em_attention(tokens, start, iterations=2)
    for b in range(2):
        mu = start.double()
        x = tokens[b].double()
        for _ in range(2):
            z = torch.stack([(x[n] @ mu.T).softmax(0) for n in range(30)])
            mu = torch.stack([sum(z[n, k] * x[n] for n in range(30)) / z[:, k].sum() for k in range(4)])
            mu = mu / mu.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(bases[b].double(), mu, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rebuilt[b].double(), (x @ mu.T).softmax(-1) @ mu, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="`iterations` is -1, allowed: 0 or more"):
        em_attention(tokens, start, iterations=-1)
    with pytest.raises(ValueError, match=r"`bases` is of shape \(4, 9\)"):
        em_attention(tokens, start[:, :9])
    globs = {"torch": torch, "vtkernels": vtkernels}
    tests = doctest.DocTestFinder().find(em.em_attention, "em_attention", globs=globs)
    failures = []
    doctest.DocTestRunner().run(tests[0], out=failures.append)
    assert not failures


@pytest.mark.parametrize(("op", "args", "kwargs", "arg", "got"), [
    ("cell_attention", (Q.long(), K, K, 4, 2), {}, "query", "int64"),
    ("cell_attention", (Q[0], K, K, 4, 2), {}, "query", "(3, 4, 8)"),
    ("cell_attention", (Q, K.half(), K, 4, 2), {}, "key", "float16"),
    ("cell_attention", (Q, K, K[..., :7], 4, 2), {}, "value", "7"),
    ("cell_attention", (Q, K, K, 4, 0), {}, "cell", "0"),
    ("cell_attention", (Q, K, K, 5, 2), {}, "grid_width", "5"),
    ("cell_attention", (Q, K, K, 6, 2), {}, "query", "4 cells"),
    ("cell_attention", (Q, K[:, :, :15], K, 4, 2), {}, "key", "15"),
    ("argmax_attention", (Q, K[:1]), {}, "key", "1"),
    ("argmax_attention", (Q, K[:, :2]), {}, "key", "2"),
    ("argmax_attention", (Q, K), {"allowed": torch.ones(2, 4, 16)}, "allowed", "float32"),
    ("argmax_attention", (Q, K), {"allowed": torch.ones(2, 4, 15, dtype=torch.bool)}, "allowed", "(2, 4, 15)"),
])
def test_bad_arguments(backend, op, args, kwargs, arg, got):
    assert_refused(op, backend, args, kwargs, arg, got)
