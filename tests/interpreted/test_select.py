"""The Triton kernels of the selecting ops in the interpreter: exact."""

import pytest
import torch
from helpers import flat, run_out

from vtkernels import _triton, testing
from vtkernels.tuning import lookup

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, of the hostile samples
OPS = ("select_topk_varlen", "select_quota", "select_threshold", "select_top_p", "allocate_budget")
STATUS = {"select_topk_varlen": testing.oracle_topk_varlen, "select_quota": testing.oracle_quota}


@pytest.fixture
def launches(monkeypatch):
    kernels, launch = [], _triton.launch
    monkeypatch.setattr(_triton, "launch", lambda kernel, *args, **options: (
        kernels.append(kernel), launch(kernel, *args, **options)))
    return kernels


def check(launches, op, sample, index_dtype=torch.int64):
    extra = {}
    if op in STATUS:
        extra = {"status": torch.tensor([64], dtype=torch.int32)}
    outs = run_out(op, "triton", sample, index_dtype, **extra)
    assert launches or not any(t.numel() for t in flat(outs)), "no kernel was launched"
    testing.CHECKS[op](outs if len(outs) > 1 else outs[0], *sample.args, **sample.kwargs)
    if extra:
        assert extra["status"].item() == 64 | STATUS[op](*sample.args, **sample.kwargs)[-1]


@pytest.mark.parametrize(("op", "sample"), [
    pytest.param(op, s, id=f"{op}-{s.name}") for op in OPS for s in testing.SAMPLES[op]()])
def test_exact(launches, op, sample):
    check(launches, op, sample, torch.int32 if len(sample.name) % 2 else torch.int64)


MANY_BLOCKS = {
    "select_topk": ("masks-index", "masks-score", "all-options", "too-few-index", "fewer-than-protected"),
    "select_topk_varlen": ("masks", "by-score", "hostile-metadata", "many"),
    "select_quota": ("masks", "masks-by-score", "edge", "many-segments", "decreasing"),
    "select_threshold": ("min-keep-largest", "each-smallest", "strided", "many-rows"),
    "select_top_p": ("softmax-0.7", "softmax-1.0", "edge", "min-keep", "zeros", "wide", "one-infinity-more"),
    "allocate_budget": ("minimum", "capacity-100", "nothing-weighs", "one-after-another", "full-but-weightless"),
}


@pytest.mark.parametrize(("op", "sample"), [
    pytest.param(op, s, id=f"{op}-{s.name}") for op, names in MANY_BLOCKS.items() for s in testing.SAMPLES[op]()
    if s.name in names])
def test_many_blocks(launches, monkeypatch, op, sample):
    """Of scores, of segments and of rows."""
    segments = 16 if "many" in sample.name else 2
    monkeypatch.setattr("vtkernels.select.select_topk_varlen.triton.SEGMENT_BLOCK", segments)
    monkeypatch.setattr("vtkernels.select.select_quota.triton.SEGMENT_BLOCK", segments)
    monkeypatch.setattr("vtkernels.select.select_threshold.triton.PREFIX_BLOCK", 16)
    scores = 32 if op in ("select_topk", "select_threshold", "select_top_p") else 16
    config = {"select_block": scores, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr(lookup, "config", lambda *args, **shape: config)
    check(launches, op, sample)


def test_functional_ops_allocate_for_themselves(launches):
    for op in OPS:
        sample = next(testing.SAMPLES[op]())
        outs = testing.run(op, "triton", *sample.args, **sample.kwargs)
        testing.CHECKS[op](outs, *sample.args, **sample.kwargs)
        assert launches
        launches.clear()
