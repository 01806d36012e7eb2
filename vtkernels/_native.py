"""The native libraries. Loading one registers its kernels with torch; a failure is kept as a readable reason.

There are two, `_C_cpu` and `_C_cuda`. A build for the Hugging Face Hub has both in one extension, named after the
namespace of its ops, which `_ops` has loaded.
"""

import ctypes
import warnings
from functools import cache
from pathlib import Path

import torch

from . import _env, _library

CUDA_PROBE = f"{_library.CUDA_NAMESPACE}::select_topk.out"
ISAS = ("baseline", "avx2", "avx512", "avx512bf16", "avx512bf16-emulated")


def path(name: str) -> Path:
    folder = Path(__file__).parent
    return next(folder.glob(f"{_library.NAMESPACE}.*so"), folder / f"{name}.so")


@cache
def load(name: str) -> str | None:
    """Load `_C_cpu` or `_C_cuda`. Returns None when its kernels are registered, else why they are not."""
    file = path(name)
    if not file.exists():
        return f"{name} was not built (pip install with a C++ compiler{' and nvcc' if name == '_C_cuda' else ''})"
    try:
        torch.ops.load_library(str(file))
    except (OSError, RuntimeError) as error:
        reason = f"{file.name} does not load with torch {torch.__version__}: {error}"
        warnings.warn(f"vtkernels: {reason}", RuntimeWarning, stacklevel=2)
        return reason
    if name == "_C_cuda" and not torch._C._dispatch_has_kernel_for_dispatch_key(CUDA_PROBE, "CUDA"):
        return f"{file.name} was built without CUDA kernels"
    if name == "_C_cpu" and _env.CPU_ISA != "auto":
        ctypes.CDLL(str(file)).vtk_cpu_limit_isa(ISAS.index(_env.CPU_ISA))
    return None


def cpu_isa() -> str | None:
    """The instruction set that the CPU kernels use, or None when they are not built."""
    return None if load("_C_cpu") else ISAS[ctypes.CDLL(str(path("_C_cpu"))).vtk_cpu_isa()]
