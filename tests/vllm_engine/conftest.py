"""Real engines on the CPU. Run by `make test-vllm` in its own environment, never by `make test`."""

import os

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
               "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
# Some virtual machines announce AMX and do not allow it.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

from typing import Any

import engines
import pytest
import tiny
import torch


@pytest.fixture(scope="session", params=tiny.FAMILIES)
def family(request) -> str:
    """Of the session, so that the tests of a family run one after another and share engines."""
    return request.param


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {family: tiny.save(family, tmp_path_factory.mktemp(family)) for family in tiny.FAMILIES}


@pytest.fixture(scope="session")
def codebook(tmp_path_factory: pytest.TempPathFactory) -> str:
    from vtkernels import prototypes

    path = tmp_path_factory.mktemp("codebook") / "prototypes.safetensors"
    torch.manual_seed(1)
    prototypes.save(path, torch.randn(8, tiny.TEXT["hidden_size"]), source="random")
    return str(path)


@pytest.fixture(scope="session")
def engine(folders):
    """An engine by family and arguments, started once."""
    made = engines.Engines(folders)
    yield made
    made.close()
