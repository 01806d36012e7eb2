"""temporal_scores, row_statistics and subspace_residual on the backends of the CPU, against float64."""

import doctest

import pytest
import torch
from helpers import assert_contract, assert_refused, assert_same_bytes, run_out, samples

import vtkernels
from vtkernels import testing

CHECKS = {"temporal_scores": testing.assert_temporal, "row_statistics": testing.assert_row_statistics,
          "subspace_residual": testing.assert_residual}


def check(op, backend, sample):
    outputs = testing.run(op, backend, *sample.args, **sample.kwargs)
    assert_contract(op, outputs, sample)
    CHECKS[op](outputs, *sample.args, **sample.kwargs)
    assert_same_bytes(testing.run(op, backend, *sample.args, **sample.kwargs), outputs)
    assert_same_bytes(run_out(op, backend, sample), outputs)


@samples("temporal_scores")
def test_temporal_scores(backend, sample):
    check("temporal_scores", backend, sample)


@samples("row_statistics")
def test_row_statistics(backend, sample):
    check("row_statistics", backend, sample)


@samples("subspace_residual")
def test_subspace_residual(backend, sample):
    check("subspace_residual", backend, sample)


@pytest.mark.parametrize("op", CHECKS)
def test_the_cpu_has_a_kernel_of_its_own(op):
    for name in (op, f"{op}.out"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"vtkernels::{name}", "CPU")


def test_every_instruction_set(instruction_set):
    for op, assert_right in CHECKS.items():
        for sample in testing.SAMPLES[op]():
            assert_right(testing.run(op, "cpu", *sample.args, **sample.kwargs), *sample.args, **sample.kwargs)


@pytest.mark.parametrize("metric", ["cosine", "l1", "l2"])
def test_the_first_frame(backend, metric):
    tokens = testing.rand(2, 3, 4, 8)
    for first in (None, 0.25, -3, float("nan")):
        want = (-torch.inf if metric == "cosine" else torch.inf) if first is None else first
        scores = testing.run("temporal_scores", backend, tokens, metric=metric, first=first)
        torch.testing.assert_close(scores[:, 0], torch.full((2, 4), float(want)), rtol=0, atol=0, equal_nan=True)
        assert scores[:, 1:].isfinite().all()


@pytest.mark.parametrize(("frames", "n"), [(40, 3), (17, 1), (5, 70), (33, 64)])
def test_long_and_wide_videos(backend, frames, n):
    """Chunks of frames, blocks of places and their remainders."""
    tokens = testing.clustered(frames * n, 50).view(1, frames, n, 50)
    for metric in ("cosine", "l1", "l2"):
        testing.assert_temporal(testing.run("temporal_scores", backend, tokens, metric=metric), tokens, metric)


def test_a_score_depends_on_two_frames_alone(backend):
    if backend == "reference":
        pytest.skip("torch's own sums depend on the shape")
    tokens = testing.clustered(2 * 40 * 70, 600).view(2, 40, 70, 600)
    together = testing.run("temporal_scores", backend, tokens)
    for b, f, n in ((0, 1, 0), (1, 39, 69), (1, 16, 5), (0, 17, 64)):
        alone = testing.run("temporal_scores", backend, tokens[b:b + 1, f - 1:f + 1, n:n + 1])
        assert alone[0, 1, 0].item() == together[b, f, n].item()


def test_a_row_does_not_depend_on_its_neighbours(backend):
    if backend == "reference":
        pytest.skip("torch's own sums depend on the shape")
    rows = testing.clustered(301, 257)
    together = testing.run("row_statistics", backend, rows)
    basis = vtkernels.orthonormal_basis(rows[None], 7)
    residual = testing.run("subspace_residual", backend, rows[None], basis)
    for i in (0, 3, 150, 299, 300):
        alone = testing.run("row_statistics", backend, rows[i])
        assert [t.item() for t in alone] == [t[i].item() for t in together]
        assert testing.run("subspace_residual", backend, rows[None, i:i + 1], basis).item() == residual[0, i].item()


def test_out_may_be_strided(backend):
    buffer = torch.full((2, 4, 9), -7.0)
    tokens = testing.rand(2, 3, 5, 8)
    testing.run("temporal_scores.out", backend, tokens, out=buffer[:, :3, 2:7])
    assert torch.equal(buffer[:, :3, 2:7], testing.run("temporal_scores", backend, tokens))
    outs = {name: torch.full((2, 4, 9), -7.0)[:, :3, 2:7] for name in ("l1", "l2", "entropy")}
    testing.run("row_statistics.out", backend, tokens, **outs)
    assert_same_bytes(tuple(t.contiguous() for t in outs.values()), testing.run("row_statistics", backend, tokens))
    testing.run("subspace_residual.out", backend, tokens[0], tokens[0, :, :2], out=buffer[0, :3, 2:7])
    assert torch.equal(buffer[0, :3, 2:7], testing.run("subspace_residual", backend, tokens[0], tokens[0, :, :2]))
    for touched in (buffer[:, 3], buffer[:, :, :2], buffer[:, :, 7:]):
        assert (touched == -7).all()


def test_entropy_of_known_distributions(backend):
    rows = torch.tensor([[1.0] * 8, [0.0] * 7 + [2.0], [-5.0] * 8, [1e38] * 2 + [-1.0] * 6, [2e-38] * 4 + [0.0] * 4])
    _, _, entropy = testing.run("row_statistics", backend, rows)
    want = torch.tensor([8.0, 1.0, 1.0, 2.0, 4.0]).log()
    torch.testing.assert_close(entropy, want, rtol=0, atol=5e-5)
    for bad in (torch.nan, torch.inf, -torch.inf):
        rows[:, 3] = bad
        assert testing.run("row_statistics", backend, rows)[2].isnan().all()


@pytest.mark.parametrize("method", ["first", "svd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthonormal_basis(method, dtype):
    keys = testing.rand(3, 20, 12, dtype=dtype)
    for r in (0, 1, 5, 12, 40):
        basis = vtkernels.orthonormal_basis(keys, r, method=method)
        assert basis.shape == (3, min(r, 12), 12)
        assert basis.dtype == dtype
        gram = basis.float() @ basis.float().mT
        atol = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(gram, torch.eye(len(gram[0])).expand_as(gram), rtol=0, atol=atol)
    assert vtkernels.orthonormal_basis(keys[:, :4], 9, method=method).shape == (3, 4, 12)
    assert vtkernels.orthonormal_basis(keys[:, :0], 9, method=method).shape == (3, 0, 12)


def test_the_example_of_orthonormal_basis():
    (test,) = doctest.DocTestFinder().find(vtkernels.orthonormal_basis, globs={"torch": torch, "vtkernels": vtkernels})
    failures = []
    doctest.DocTestRunner().run(test, out=failures.append)
    assert not failures, "".join(failures)


def test_first_spans_the_first_keys_and_svd_the_most(backend):
    keys = testing.clustered(60, 16)[None]
    first = vtkernels.orthonormal_basis(keys, 5)
    residual = testing.run("subspace_residual", backend, keys, first)
    assert residual[0, :5].max() < 1e-5
    assert residual[0, 5:].min() > 1e-3
    best = testing.run("subspace_residual", backend, keys, vtkernels.orthonormal_basis(keys, 5, method="svd"))
    assert best.square().sum() < residual.square().sum()
    singular = torch.linalg.svdvals(keys[0])
    torch.testing.assert_close(best.square().sum(), singular[5:].square().sum())


V, X, B = testing.rand(1, 2, 3, 4), testing.rand(2, 5, 4), testing.rand(2, 2, 4)


@pytest.mark.parametrize(("op", "args", "kwargs", "arg", "got"), [
    ("temporal_scores", (V[0],), {}, "tokens", "(2, 3, 4)"),
    ("temporal_scores", (V.double(),), {}, "tokens", "float64"),
    ("temporal_scores", (V,), {"metric": "dot"}, "metric", "'dot'"),
    ("row_statistics", (V.long(),), {}, "rows", "int64"),
    ("row_statistics", (V[0, 0, 0, 0],), {}, "rows", "0-D"),
    ("subspace_residual", (X[0], B), {}, "tokens", "(5, 4)"),
    ("subspace_residual", (X, B[0]), {}, "basis", "(2, 4)"),
    ("subspace_residual", (X, B.half()), {}, "basis", "float16"),
    ("subspace_residual", (X.double(), B.double()), {}, "tokens", "float64"),
    ("subspace_residual", (X, B[:1]), {}, "basis", "1"),
    ("subspace_residual", (X, B[..., :3]), {}, "basis", "3"),
])
def test_bad_arguments(backend, op, args, kwargs, arg, got):
    assert_refused(op, backend, args, kwargs, arg, got)


def test_gradients_are_refused():
    for call in (lambda x: vtkernels.temporal_scores(x), lambda x: vtkernels.row_statistics(x),
                 lambda x: vtkernels.subspace_residual(x[0], x[0])):
        with pytest.raises(RuntimeError, match="requires a gradient, which this op does not have"):
            call(V.clone().requires_grad_())


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"r": -1}, "`r` is -1"), ({"r": 1, "method": "qr"}, "`method` is 'qr'")])
def test_bad_basis(kwargs, message):
    with pytest.raises(ValueError, match=f"orthonormal_basis: {message}, allowed: "):
        vtkernels.orthonormal_basis(X, **kwargs)
