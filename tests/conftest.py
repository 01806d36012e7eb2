"""Shared fixtures. A test asks for `backend` to run on each backend that needs no GPU and no interpreter."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vtkernels import _dispatch

# These run in processes of their own, see test_triton_interpreter.py.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = _dispatch.refusal(request.param, "cpu")
    if reason:
        pytest.fail(f"backend {request.param} cannot run: {reason}")
    return request.param


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
    (tensor,) = load_file(path).values()
    return tensor
