"""The Triton kernels of temporal_scores, row_statistics and subspace_residual in the interpreter, against float64."""

import pytest
import torch
from helpers import flat, run_out

from vtkernels import _triton, testing
from vtkernels.tuning import lookup

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, of the hostile samples
CHECKS = {"temporal_scores": testing.assert_temporal, "row_statistics": testing.assert_row_statistics,
          "subspace_residual": testing.assert_residual}


@pytest.fixture
def launches(monkeypatch):
    kernels, launch = [], _triton.launch
    monkeypatch.setattr(_triton, "launch", lambda kernel, *args, **options: (
        kernels.append(kernel), launch(kernel, *args, **options)))
    return kernels


@pytest.mark.parametrize(("op", "sample"), [
    pytest.param(op, s, id=f"{op}-{s.name}") for op in CHECKS for s in testing.SAMPLES[op]()])
def test_against_float64(launches, op, sample):
    outs = run_out(op, "triton", sample)
    assert launches or not any(t.numel() for t in flat(outs)), "no kernel was launched"
    CHECKS[op](outs if len(outs) > 1 else outs[0], *sample.args, **sample.kwargs)


@pytest.mark.parametrize("metric", ["cosine", "l1", "l2"])
def test_rows_longer_than_a_block_and_chunks_of_frames(launches, monkeypatch, metric):
    config = {"block_d": 32, "frames": 4, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr(lookup, "config", lambda *args, **shape: config)
    for d in (16, 32, 33, 96):
        tokens = testing.clustered(11 * 3, d).view(1, 11, 3, d)
        testing.assert_temporal(testing.run("temporal_scores", "triton", tokens, metric=metric), tokens, metric)
    assert len(launches) == 4


def test_out_may_be_strided(launches):
    buffer = torch.full((2, 4, 9), -7.0)
    tokens = testing.rand(2, 3, 5, 8)
    testing.run("temporal_scores.out", "triton", tokens, out=buffer[:, :3, 2:7])
    testing.assert_temporal(buffer[:, :3, 2:7], tokens)
    outs = [torch.full((2, 4, 9), -7.0)[:, :3, 2:7] for _ in range(3)]
    testing.run("row_statistics.out", "triton", tokens, l1=outs[0], l2=outs[1], entropy=outs[2])
    testing.assert_row_statistics(outs, tokens)
    assert len(launches) == 2
    assert (buffer[:, 3] == -7).all()
    assert (buffer[:, :, :2] == -7).all()
