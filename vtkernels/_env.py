"""Every environment variable that vtkernels reads, in one place. ``TABLE`` is what the docs print."""

import os

TABLE = (
    ("VTKERNELS_BACKEND", "auto", "force one backend for every op: reference, cpu, triton, cuda; auto keeps the order"),
    ("VTKERNELS_CPU_ISA", "auto",
     "highest instruction set of the CPU kernels: baseline, avx2, avx512, avx512bf16 (auto: on AMD only)"),
    ("VTKERNELS_TUNING_DIR", "", "folder of tuning tables that override the shipped ones"),
    ("VTKERNELS_BUILD_NATIVE", "auto", "at build time: 1 demands the native libraries, 0 builds a pure wheel"),
    ("VTKERNELS_CUDA_ARCHS", "", "at build time: compute capabilities of _C_cuda, such as '80;90', 'all' or 'none'"),
)

BACKENDS = ("reference", "cpu", "triton", "cuda")


def _choice(name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name, default) or default
    if value not in (default, *allowed):
        raise ValueError(f"environment variable {name} is {value!r}, allowed: {', '.join((default, *allowed))}")
    return value


BACKEND = _choice("VTKERNELS_BACKEND", "auto", BACKENDS)
CPU_ISA = _choice("VTKERNELS_CPU_ISA", "auto", ("baseline", "avx2", "avx512", "avx512bf16"))
TUNING_DIR = os.environ.get("VTKERNELS_TUNING_DIR", "")
