"""Every Triton kernel with every shipped configuration, compiled for GPUs that are not there.

Each case is what the launcher itself would launch. Gates: no spills, registers and shared memory within the arch's
limits, and no multiplication narrower than 64 bits, so that no offset can overflow.
"""

import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import aot
import pytest
import torch
from aot_cases import Case, cases, knows_dtype, launches

from vtkernels.tuning import lookup


def build(case: Case, arch: str) -> list[dict]:
    """Compile the launches of a case, in a process of its own. Returns what the gates look at."""
    report = []
    for launch in launches(case):
        kernel = aot.compiled(launch, arch)
        narrow = [line.strip() for line in kernel.asm["ttir"].splitlines()
                  if "arith.muli" in line and not re.search(r": (tensor<[0-9x]*)?i64", line)]
        # The AMD backend of Triton 3.9 can fold a product away with what follows it, without a word.
        lost = arch.startswith("gfx") and "tt.dot" in kernel.asm["ttir"] and "v_mfma" not in kernel.asm["amdgcn"]
        report.append({"lost": lost, "kernel": launch.kernel.__name__, "narrow": narrow, **aot.resources(kernel, arch)})
    return report


def constants(launch: aot.Launch) -> tuple:
    """What of a launch decides which compiled kernel runs, beside the alignment of pointers."""
    words = tuple(len(value) for value in launch.args if isinstance(value, tuple))
    return launch.kernel.__name__, tuple(launch.options.items()), words


@pytest.mark.parametrize("op", ["prune_topk", "select_topk", "prototype_scores"])
def test_the_number_of_tokens_does_not_recompile(op: str) -> None:
    def variant(n: int, k: int) -> list[tuple]:
        entry = {"match": {"n": n, "d": 64, "p": 9}, "config": lookup.config(op, "default", torch.float16, n=600)}
        with mock.patch.object(lookup, "load", return_value=[entry]):
            recorded = launches(Case(op, "default", 0, "float16"))
        return [constants(launch) for launch in recorded]

    assert variant(1000, 10) == variant(641, 11) == variant(577, 12)


@pytest.fixture(scope="module")
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """All selected cases, compiling in two processes."""
    environment = {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    wanted = [item.callspec.params for item in request.session.items if item.path == Path(__file__)]
    with mock.patch.dict(os.environ, environment):
        os.environ.pop("TRITON_INTERPRET", None)
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            futures: dict[tuple[Case, str], Future] = {
                (p["case"], p["arch"]): pool.submit(build, p["case"], p["arch"]) for p in wanted if "case" in p}
            yield futures
            pool.shutdown(cancel_futures=True)


def marks(case: Case, arch: str) -> list:
    """The flagship in bfloat16 on all architectures and in every dtype on two of them, and the variants; the other ops
    on one of these two in the dtypes of either width, on the other in bfloat16; the rest is in the long suite."""
    if case.op == "prune_topk":
        often = case.dtype == "bfloat16" or arch in ("sm_90", "gfx942")
    elif arch == "gfx942":
        often = case.dtype == "bfloat16" or not knows_dtype(case.op) or case.variant != "plain"
    else:
        often = arch == "sm_90" and case.dtype != "float16"
    return [] if often else [pytest.mark.long]


@pytest.mark.parametrize(("case", "arch"), [
    pytest.param(c, a, id=f"{c}-{a}", marks=marks(c, a)) for c, a in cases()])
def test_compiles_within_the_limits(builds: dict, case: Case, arch: str) -> None:
    report = builds[case, arch].result()
    assert report, "the launcher launched nothing"
    for kernel in report:
        assert kernel["STACK"] == 0, f"{kernel['kernel']} spills {kernel['STACK']} bytes: {kernel}"
        assert kernel["REG"] <= aot.REGISTER_LIMIT[arch], kernel
        assert kernel["SHARED"] <= aot.SHARED_LIMIT[arch] * 1024, kernel
        assert not kernel["lost"], f"{kernel['kernel']} has lost its matrix products"
        assert kernel["narrow"] == [], f"{kernel['kernel']} multiplies in less than 64 bits"
