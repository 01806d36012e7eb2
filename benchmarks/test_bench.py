"""Entry points for pytest-benchmark: `pytest benchmarks --benchmark-only`. Checks come first here too.

CPU, or the GPU with plain calls that wait for it. Compiled peers, graph replay and rooflines are in `run.py`.
"""

from typing import Any

import pytest
import torch

from .data import make
from .measure import ours
from .peers import build
from .registry import CASES, Case
from .verify import check, check_peer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLEMENTATIONS = ("vtkernels", "eager", "better")


def cases() -> list[Case]:
    group = "gpu" if DEVICE == "cuda" else "cpu"
    return [c for c in CASES if group in c.groups and c.counts().bytes < 2**29]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c.op}-{c.name}")
def test_speed(benchmark: Any, case: Case, implementation: str) -> None:
    with torch.inference_mode():
        call = make(case, DEVICE)
        reference = ours(case, "auto")
        outputs = reference(call)
        check(case, call, outputs)
        run = reference if implementation == "vtkernels" else build(case, implementation)
        if run is not reference:
            check_peer(case, call, run(call), outputs)

        def once() -> None:
            run(call)
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        benchmark.group = f"{case.op} {case.name}"
        benchmark.extra_info.update(bytes=case.counts().bytes, flops=case.counts().flops)
        benchmark(once)
