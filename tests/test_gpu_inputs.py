"""The inputs of the GPU suite, on the CPU: they are valid for every op, they differ, and far offsets change nothing.
The bodies of its tests run here too, with a call in the place of a graph."""

import contextlib
import mmap
from unittest import mock

import gpu_inputs
import pytest
import test_gpu
import torch
from helpers import assert_same_bytes

from vtkernels import testing

NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which the mmap module names only from Python 3.13 on


def sparse(size: int) -> torch.Tensor:
    """Zeros that take memory only where they are written."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    return torch.frombuffer(memory, dtype=torch.uint8)


@pytest.mark.parametrize("op", gpu_inputs.ALL)
def test_every_seed_gives_inputs_that_the_oracles_judge(op):
    for seed in range(4):
        sample = gpu_inputs.fresh(op, seed)
        before = gpu_inputs.pools_before(op, sample)
        args = gpu_inputs.mapped(sample.args, testing.copied) if op in gpu_inputs.IN_PLACE else sample.args
        outputs = testing.run(op, "cpu", *args, **sample.kwargs)
        gpu_inputs.checked(op, sample, args, sample.kwargs, outputs, before)


@pytest.mark.parametrize("op", gpu_inputs.ALL)
def test_seeds_change_values_and_keep_shapes(op):
    first, second = (gpu_inputs.tensors((s.args, s.kwargs)) for s in (gpu_inputs.fresh(op, 1), gpu_inputs.fresh(op, 2)))
    assert [(t.shape, t.dtype, t.stride()) for t in first] == [(t.shape, t.dtype, t.stride()) for t in second]
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("op", gpu_inputs.ALL)
def test_offsets_beyond_2_31_change_nothing(op):
    sample = gpu_inputs.fresh(op, 0)
    spread = gpu_inputs.spread(sample, sparse)
    assert spread, f"{op}: no tensor of the sample can be spread"
    assert max(t.untyped_storage().nbytes() // t.element_size() for t in gpu_inputs.tensors(spread.args)) > 2**31
    found = []
    for each in (sample, spread):
        args = gpu_inputs.mapped(each.args, testing.copied) if each is sample else each.args
        outputs = testing.run(op, "cpu", *args, **each.kwargs)
        found.append(gpu_inputs.results(op, outputs, args))
    assert_same_bytes(*found)


@pytest.fixture
def gpu_suite_on_the_cpu(monkeypatch):
    def captured(call):
        outputs = call()

        def replay():
            again = call()
            for old, new in zip(gpu_inputs.tensors(outputs), gpu_inputs.tensors(again), strict=True):
                old.copy_(new)

        return outputs, replay

    monkeypatch.setattr(test_gpu, "DEVICE", "cpu")
    monkeypatch.setattr(test_gpu, "REPLAYS", 4)
    monkeypatch.setattr(test_gpu, "INPUTS", 2)
    monkeypatch.setattr(test_gpu, "captured", captured)
    monkeypatch.setattr(torch.cuda, "Stream", mock.Mock)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@pytest.mark.parametrize("op", gpu_inputs.ALL)
def test_bodies_of_the_gpu_suite(gpu_suite_on_the_cpu, op):
    test_gpu.test_graph_replay_follows_its_inputs("cpu", op)
    test_gpu.test_two_streams_do_not_disturb_each_other("cpu", op)


def test_a_replay_with_stale_inputs_is_seen(gpu_suite_on_the_cpu, monkeypatch):
    def stale(call):
        return call(), lambda: None

    monkeypatch.setattr(test_gpu, "captured", stale)
    with pytest.raises(AssertionError):
        test_gpu.test_graph_replay_follows_its_inputs("cpu", "select_topk")
