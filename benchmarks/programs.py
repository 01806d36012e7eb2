"""The torch-free CUDA programs beside the suite: what they are, and how nvcc builds them."""

import shutil
from pathlib import Path

from .environment import ROOT

BUILT = ROOT / "build" / "gpu"
MACHINE = tuple(f"benchmarks/machine/{name}.cu" for name in ("memory", "launches", "barriers", "products"))
PLANTED = "benchmarks/planted/planted.cu"
SMOKE = "csrc/smoke/cuda.cu"


def find_nvcc() -> Path | None:
    found = shutil.which("nvcc")
    if found:
        return Path(found)
    from torch.utils.cpp_extension import CUDA_HOME
    candidate = Path(CUDA_HOME) / "bin" / "nvcc" if CUDA_HOME else None
    return candidate if candidate and candidate.is_file() else None


def kernels() -> list[str]:
    """The CUDA sources of the one list."""
    listed = (line.split() for line in (ROOT / "csrc/sources.txt").read_text().splitlines())
    return [words[1] for words in listed if words[:1] == ["cuda"] and words[1].endswith(".cu")]


def target(source: str, arch: str, folder: Path = BUILT) -> Path:
    return folder / f"{Path(source).stem}-{arch}"


def command(source: str, arch: str, folder: Path = BUILT) -> list[str]:
    """How a program is built; the smoke program with every kernel."""
    number = arch.removeprefix("sm_")
    linked = ["-Icsrc/include", "--threads", "0", *kernels()] if source == SMOKE else []
    return ["nvcc", "-std=c++17", "-O3", "-gencode", f"arch=compute_{number},code={arch}", source, *linked, "-o",
            str(target(source, arch, folder))]
