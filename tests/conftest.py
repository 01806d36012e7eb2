"""Shared fixtures. A test asks for `backend` to run on each backend that needs no GPU and no interpreter."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

# Some virtual machines announce AMX and do not allow it: torch's own bf16 products would end the process.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import pytest
import torch

from vtkernels import _dispatch, _native

# These run in processes of their own, see test_triton_interpreter.py.
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore = [] if INTERPRETING else ["interpreted"]
if INTERPRETING:
    import interpreter

    interpreter.quicken()

# A file runs on one worker: the longest begin first, so that none of them is left over at the end.
LONGEST = ("test_cuda_build", "test_triton_interpreter", "test_triton_aot", "test_native_build", "test_benchmarks",
           "test_registration", "test_cuda_shim", "test_cuda_shim_attention", "test_demo", "test_methods")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", metavar="COMMAND", help="put the outcome of this command into docs/reliability.json")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if command := config.getoption("--record"):
        from tests import reliability

        counts = {kind: len(terminalreporter.stats.get(kind, []))
                  for kind in ("passed", "failed", "error", "skipped", "xfailed", "xpassed")}
        reliability.record(f"suite, {command}", ", ".join(f"{n} {kind}" for kind, n in counts.items() if n), command)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = _dispatch.refusal(request.param, "cpu")
    if reason:
        pytest.fail(f"backend {request.param} cannot run: {reason}")
    return request.param


@pytest.fixture(params=_native.ISAS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """The CPU kernels held to one instruction set, where the processor has it."""
    level, emulated = _native.ISAS.index(request.param), request.param.endswith("emulated")
    library = ctypes.CDLL(str(_native.path("_C_cpu")))
    if library.vtk_cpu_supported_isa() < (_native.ISAS.index("avx512") if emulated else level):
        pytest.skip(f"this processor has no {request.param}")
    before = library.vtk_cpu_isa()
    library.vtk_cpu_limit_isa(level)
    assert library.vtk_cpu_isa() == level
    yield request.param
    library.vtk_cpu_limit_isa(before)


@pytest.fixture(autouse=True)
def poisoned_allocations():
    """torch fills what `empty` returns with NaN or the largest integer, so that an unwritten output shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def real_codebook() -> torch.Tensor:
    """Prototypes that the authors of RedundancyCodebook published, where the file is at hand."""
    path = Path(__file__).parents[2] / "shared/data/redundancy_codebook_llava_onevision_7b.safetensors"
    if not path.exists():
        pytest.skip("the published codebook is not beside the checkout")
    from safetensors.torch import load_file

    (tensor,) = load_file(path).values()
    return tensor
