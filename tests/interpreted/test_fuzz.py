"""Drawn calls of every Triton kernel in the interpreter: the seeds of the fuzzer, judged as on the CPU."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz import judge
from fuzz.known import known_reason

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, of the hostile values


@pytest.mark.parametrize("op", judge.GENERATORS)
def test_a_slice(op):
    for seed in range(3):
        sample, _ = judge.sample_of(op, seed)
        if known_reason(op, sample) is None:
            judge.judge(op, sample, ("reference", "triton"))
