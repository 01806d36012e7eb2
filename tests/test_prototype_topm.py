"""prototype_topm on the backends of the CPU, against float64 and exactly."""

import pytest
import torch
from helpers import assert_contract, assert_refused, assert_same_bytes, run_out, samples

import vtkernels
from vtkernels import testing

OP = "prototype_topm"
X, P = testing.rand(2, 20, 8), testing.rand(4, 8)


@samples(OP)
def test_against_float64(backend, sample):
    outputs = testing.run(OP, backend, *sample.args, **sample.kwargs)
    assert_contract(OP, outputs, sample)
    testing.assert_topm(outputs, *sample.args, **sample.kwargs)
    assert_same_bytes(testing.run(OP, backend, *sample.args, **sample.kwargs), outputs)


@samples(OP)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_out_variant_equals_functional(backend, sample, index_dtype):
    scores, indices = testing.run(OP, backend, *sample.args, **sample.kwargs)
    assert_same_bytes(run_out(OP, backend, sample, index_dtype), (scores, indices.to(index_dtype)))


def test_the_cpu_has_a_kernel_of_its_own():
    for name in (OP, f"{OP}.out"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"vtkernels::{name}", "CPU")


@pytest.mark.parametrize("m", [1, 2, 31, 600, 1100])
def test_ties_and_nan_exactly(backend, m):
    protos = testing.rand(5, 12, seed=1).round().repeat(220, 1)
    protos[17, 3] = protos[900] = torch.nan
    tokens = testing.rand(40, 12).round()
    similarity = (tokens @ protos.T).tolist()
    _, indices = testing.run(OP, backend, tokens, protos, m, metric="dot")
    for row, got in zip(similarity, indices.tolist(), strict=True):
        want = sorted(range(1100), key=lambda p, row=row: (row[p] != row[p], 0 if row[p] != row[p] else -row[p], p))
        assert got == want[:m]


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_the_first_is_that_of_prototype_scores(backend, metric):
    tokens, protos = testing.clustered(300, 70), testing.clustered(90, 70, seed=3)
    scores, indices = testing.run(OP, backend, tokens, protos, 3, metric=metric)
    best, argmax = testing.run("prototype_scores", backend, tokens, protos, metric=metric)
    assert torch.equal(scores[:, 0], best)
    assert torch.equal(indices[:, 0], argmax)


def test_given_norms_are_used(backend):
    tokens, protos = testing.rand(9, 20), testing.rand(4, 20, seed=1)
    rnorm = torch.tensor([0.0, 2.0, 0.0, 0.0])
    scores, indices = testing.run(OP, backend, tokens, protos, 4, prototype_rnorm=rnorm)
    expected = (tokens @ protos.T * rnorm).sort(dim=-1, descending=True, stable=True)
    assert torch.equal(indices, expected.indices)
    torch.testing.assert_close(scores, expected.values / tokens.norm(dim=-1, keepdim=True))


def test_a_token_does_not_depend_on_its_neighbours(backend):
    if backend == "reference":
        pytest.skip("the reference multiplies through torch, whose blocking depends on the batch")
    tokens, protos = testing.clustered(700, 600), testing.clustered(70, 600, seed=3)
    scores, indices = testing.run(OP, backend, tokens, protos, 5)
    for i in (0, 13, 14, 350, 699):
        alone = testing.run(OP, backend, tokens[i:i + 1], protos, 5)
        assert torch.equal(alone[0][0], scores[i])
        assert torch.equal(alone[1][0], indices[i])


@pytest.mark.parametrize(("args", "kwargs", "arg", "got"), [
    ((X, P, 0), {}, "m", "0"),
    ((X, P, 5), {}, "m", "5"),
    ((X, P, -1), {}, "m", "-1"),
    ((X, P[:0], 1), {}, "prototypes", "(0, 8)"),
    ((X, P.half(), 1), {}, "prototypes", "float16"),
    ((X[0, 0], P, 1), {}, "tokens", "(8,)"),
    ((X, P, 1), {"metric": "l1"}, "metric", "'l1'"),
    ((X, P, 1), {"metric": "l2", "prototype_rnorm": torch.ones(4)}, "prototype_rnorm", "given"),
    ((X, P[None], 1), {}, "prototypes", "1"),
])
def test_bad_arguments(backend, args, kwargs, arg, got):
    assert_refused(OP, backend, args, kwargs, arg, got)


def test_gradients_are_refused():
    with pytest.raises(RuntimeError, match="requires a gradient, which this op does not have"):
        vtkernels.prototype_topm(X.clone().requires_grad_(), P, 1)
