"""The two native libraries. Loading one registers its kernels with torch; a failure is kept as a readable reason."""

import warnings
from functools import cache
from pathlib import Path

import torch


def path(name: str) -> Path:
    return Path(__file__).parent / f"{name}.so"


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
    return None
