"""prototype_softmax_scores on the backends of the CPU, against float64."""

import pytest
import torch
from helpers import assert_contract, assert_refused, assert_same_bytes, run_out, samples

import vtkernels
from vtkernels import testing

OP = "prototype_softmax_scores"
X, P = testing.rand(2, 20, 8), testing.rand(4, 8)


@samples(OP)
def test_against_float64(backend, sample):
    out = testing.run(OP, backend, *sample.args, **sample.kwargs)
    assert_contract(OP, out, sample)
    testing.assert_softmax(out, *sample.args, **sample.kwargs)
    assert_same_bytes(testing.run(OP, backend, *sample.args, **sample.kwargs), out)
    assert_same_bytes(run_out(OP, backend, sample), out)


def test_the_cpu_has_a_kernel_of_its_own():
    for name in (OP, f"{OP}.out"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"vtkernels::{name}", "CPU")


@pytest.mark.parametrize("over_tokens", [False, True])
@pytest.mark.parametrize(("n", "p"), [(3, 600), (800, 5), (513, 45)])
def test_many_tokens_and_prototypes(backend, over_tokens, n, p):
    tokens = testing.clustered(2 * n, 50).view(2, n, 50)
    protos = testing.clustered(p, 50, seed=3)
    testing.assert_softmax(testing.run(OP, backend, tokens, protos, over_tokens=over_tokens), tokens, protos,
                           over_tokens)


@pytest.mark.parametrize("over_tokens", [False, True])
def test_a_row_does_not_depend_on_other_rows(backend, over_tokens):
    if backend == "reference":
        pytest.skip("the reference multiplies through torch, whose blocking depends on the batch")
    tokens, protos = testing.clustered(5 * 300, 60).view(5, 300, 60), testing.clustered(70, 60, seed=3)
    together = testing.run(OP, backend, tokens, protos, over_tokens=over_tokens)
    for b in (0, 2, 4):
        assert torch.equal(testing.run(OP, backend, tokens[b:b + 1], protos, over_tokens=over_tokens)[0], together[b])


def test_threads_do_not_matter(backend):
    tokens, protos = testing.clustered(3 * 700, 60).view(3, 700, 60), testing.clustered(70, 60, seed=3)
    together = testing.run(OP, backend, tokens, protos, over_tokens=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = testing.run(OP, backend, tokens, protos, over_tokens=True)
    finally:
        torch.set_num_threads(threads)
    if backend == "cpu":
        assert torch.equal(alone, together)
    torch.testing.assert_close(alone, together)


@pytest.mark.parametrize("over_tokens", [False, True])
def test_given_norms_are_used(backend, over_tokens):
    tokens, protos = testing.rand(1, 9, 20), testing.rand(4, 20, seed=1)
    rnorm = torch.tensor([0.0, 0.5, 0.0, 0.1])
    got = testing.run(OP, backend, tokens, protos, over_tokens=over_tokens, prototype_rnorm=rnorm)
    similarity = tokens @ protos.T * rnorm / tokens.norm(dim=-1, keepdim=True)
    want = similarity.softmax(-1) * (similarity.softmax(-2) if over_tokens else 1)
    torch.testing.assert_close(got, want.amax(-1))


@pytest.mark.parametrize(("args", "kwargs", "arg", "got"), [
    ((X[0], P), {}, "tokens", "(20, 8)"),
    ((X.double(), P.double()), {}, "tokens", "float64"),
    ((X, P[:0]), {}, "prototypes", "(0, 8)"),
    ((X, P.half()), {}, "prototypes", "float16"),
    ((X, P[:, :7]), {}, "prototypes", "7"),
    ((X, P[None]), {}, "prototypes", "(1, 4, 8)"),
    ((X, P), {"prototype_rnorm": torch.ones(3)}, "prototype_rnorm", "3"),
])
def test_bad_arguments(backend, args, kwargs, arg, got):
    assert_refused(OP, backend, args, kwargs, arg, got)


def test_gradients_are_refused():
    with pytest.raises(RuntimeError, match="requires a gradient, which this op does not have"):
        vtkernels.prototype_softmax_scores(X.clone().requires_grad_(), P)
