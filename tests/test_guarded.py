"""Every op in guarded memory (see guarded/), in processes of their own: a fault kills the process that it happens in.

Each tensor lies against a page that faults, once before it and once behind it; inputs cannot be written; two runs into
buffers full of different bytes must agree in every byte, so all of them are written.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAULTS = ("read-before", "read-after", "write-before", "write-after", "input-written")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the page protection is that of Linux")


def guarded(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.guarded", "-v", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=1500)


def assert_clean(child: subprocess.CompletedProcess) -> int:
    """How many calls there were; the last line names the call at which it ended."""
    assert child.returncode == 0, f"at {child.stdout.strip().splitlines()[-1:]}: {child.returncode}\n{child.stderr}"
    summary = child.stdout.strip().splitlines()[-1]
    print(summary)
    found = re.fullmatch(r"(\d+) guarded calls of \d+ ops on \w+: nothing found", summary)
    assert found, summary
    return int(found[1])


def test_every_sample_of_every_op():
    assert assert_clean(guarded("--fuzz", "10")) > 6000


def test_the_triton_kernels_in_the_interpreter():
    assert assert_clean(guarded("--backend", "triton", "--no-samples", "--fuzz", "2", TRITON_INTERPRET="1",
                                OMP_NUM_THREADS="1")) > 200


@pytest.mark.parametrize("defect", FAULTS)
def test_a_planted_fault_is_caught(defect):
    child = guarded("--plant", defect)
    assert child.stdout == "planted\n"
    assert child.returncode == -signal.SIGSEGV, child.stderr


@pytest.mark.parametrize(("defect", "report"), [("canary", "1 bytes beside the tensor were written"),
                                                ("unwritten", "8 bytes of an output depend on what was there before")])
def test_a_planted_defect_is_reported(defect, report):
    child = guarded("--plant", defect)
    assert child.returncode == 1
    assert report in child.stderr
