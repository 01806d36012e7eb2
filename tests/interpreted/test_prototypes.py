"""The Triton kernels of the prototype scores in the interpreter, against float64."""

import pytest
import torch
from helpers import flat, run_out

from vtkernels import _triton, testing
from vtkernels.score.prototype_scores.reference import reciprocal_norms
from vtkernels.testing.score import score_samples, softmax_samples, topm_samples

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, of the hostile samples


@pytest.fixture
def launches(monkeypatch):
    kernels, launch = [], _triton.launch
    monkeypatch.setattr(_triton, "launch", lambda kernel, *args, **options: (
        kernels.append(kernel.__name__), launch(kernel, *args, **options)))
    return kernels


def cases(samples, keep=lambda name: True):
    return pytest.mark.parametrize("sample", [s for s in samples() if keep(s.name)], ids=lambda s: s.name)


def run(launches, op, sample, **extra):
    outs = run_out(op, "triton", sample, **extra)
    assert launches or not any(t.numel() for t in flat(outs)), "no kernel was launched"
    return outs


@cases(score_samples, lambda name: "l2" in name or "grouped" in name)
def test_l2_and_groups(launches, sample):
    scores, argmax = run(launches, "prototype_scores", sample, index_dtype=torch.int32)
    testing.assert_scores(scores, *sample.args, argmax=argmax, **sample.kwargs)


@cases(topm_samples)
def test_topm(launches, sample):
    outs = run(launches, "prototype_topm", sample)
    testing.assert_topm(outs, *sample.args, **sample.kwargs)


@cases(softmax_samples)
def test_softmax(launches, sample):
    (out,) = run(launches, "prototype_softmax_scores", sample)
    testing.assert_softmax(out, *sample.args, **sample.kwargs)
    assert len(launches) == (0 if out.numel() == 0 else 3 if sample.kwargs["over_tokens"] else 1)


@pytest.mark.parametrize("op", ["prototype_topm", "prototype_softmax_scores"])
def test_given_norms(launches, op):
    tokens, protos = testing.rand(1, 9, 20), testing.rand(5, 20, seed=1)
    args = (tokens, protos, 2) if op == "prototype_topm" else (tokens, protos)
    rnorm = (reciprocal_norms(protos) * 0.5).repeat_interleave(2)[::2]
    got = testing.run(op, "triton", *args, prototype_rnorm=rnorm)
    want = testing.run(op, "reference", *args, prototype_rnorm=rnorm)
    assert launches
    for g, w in zip(flat(got), flat(want), strict=True):
        torch.testing.assert_close(g, w)


def test_more_than_one_pass_of_topm(launches):
    """Ties over the borders of blocks and passes, and NaN."""
    protos = testing.rand(3, 16, seed=1).round().repeat(50, 1)
    protos[70] = torch.nan
    tokens = testing.rand(1, 5, 16).round()
    got = testing.run("prototype_topm", "triton", tokens, protos, 150, metric="dot")
    want = testing.run("prototype_topm", "reference", tokens, protos, 150, metric="dot")
    assert launches == ["topm_kernel"]
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=0)
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=0, equal_nan=True)
    assert got[1][0, :, -1].tolist() == [70] * 5
