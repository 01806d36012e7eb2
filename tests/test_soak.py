"""A short slice of `python -m tests.soak`, and scratch memory that threads share, which it has to find."""

import sys
import threading

import pytest
import torch
from helpers import flat

from tests import soak
from vtkernels import testing

THREADS, SECONDS = 8, 4.0


@pytest.fixture(autouse=True)
def eager_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def todo():
    return soak.jobs(3)


def test_many_threads_give_the_bytes_of_one(todo):
    assert {job.op for job in todo} == set(testing.SAMPLES)
    assert {(job.op, job.out) for job in todo} >= {(op, True) for op in testing.SAMPLES}
    calls, found = soak.soak(todo, THREADS, SECONDS)
    assert not found
    assert calls > THREADS
    assert threading.active_count() < THREADS


def test_scratch_that_threads_share_is_found(todo):
    shared = torch.empty(1 << 24, dtype=torch.uint8)

    def through_shared_memory(name, backend, *args, **kwargs):
        results = testing.run(name, backend, *args, **kwargs)
        for t in flat(results):
            raw = t.reshape(-1).view(torch.uint8) if t.numel() else shared[:0]
            shared[:raw.numel()].copy_(raw)
            raw.copy_(shared[:raw.numel()])
        return results

    functional = [job for job in todo if not job.out]
    calls, found = soak.soak(functional, 1, 0.5, through_shared_memory)
    assert not found, "one thread has the memory for itself"
    assert calls
    _, found = soak.soak(functional, THREADS, 60, through_shared_memory)
    assert found
    assert " differs in thread " in found[0]
