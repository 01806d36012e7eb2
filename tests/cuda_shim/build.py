"""Builds the CUDA sources for the CPU with g++ and the shim beside this file."""

from pathlib import Path

from tests.sanitize.build import ROOT, compile_objects, link, run

SHIM = Path(__file__).parent
FLAGS = ("-std=c++20", "-O1", "-g1", "-fvisibility=default", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
         "-DVTKERNELS_CUDA_SHIM", f"-I{SHIM}", "-x", "c++")
SOURCES = [line.split()[1] for line in (ROOT / "csrc/sources.txt").read_text().splitlines() if line.startswith("cuda ")]
KERNELS = [source for source in SOURCES if source.endswith(".cu")]
LIBRARY_SOURCES = (*SOURCES, "tests/cuda_shim/control.cpp")


def library(out: Path) -> Path:
    return out / "libvtkernels_cuda_shim.so"


def torch_library(out: Path) -> Path:
    """The registration and the kernels, for CPU tensors."""
    return link(compile_objects(ROOT, LIBRARY_SOURCES, out, FLAGS), library(out))


def smoke_objects(out: Path, flags: list[str]) -> Path:
    compile_objects(ROOT, [*KERNELS, "csrc/smoke/cuda.cu"], out, (*FLAGS, *flags))
    return out


def smoke_program(objects: Path, out: Path, flags: list[str], changed: tuple[Path, str] | None = None) -> Path:
    """The torch-free smoke program on the shim; `changed` is a tree of sources, and the one in it to compile anew."""
    parts = {p.name: p for p in objects.glob("*.o")}
    if changed is not None:
        csrc, name = changed
        (new,) = compile_objects(csrc.parent, [f"csrc/{name}"], out, (*FLAGS, *flags))
        assert new.name in parts
        parts[new.name] = new
    target = out / "smoke"
    run(["g++", *flags, *map(str, parts.values()), "-o", str(target), "-pthread"])
    return target
