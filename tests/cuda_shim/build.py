"""Builds the CUDA sources for the CPU with g++ and the shim beside this file."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[2]
SHIM = Path(__file__).parent
SOURCES = [Path(line.split()[1]).relative_to("csrc") for line in (ROOT / "csrc/sources.txt").read_text().splitlines()
           if line.startswith("cuda ")]
KERNELS = [source for source in SOURCES if source.suffix == ".cu"]


def compile_objects(sources: list[tuple[Path, list[str]]], csrc: Path, out: Path, flags: list[str]) -> list[str]:
    out.mkdir(parents=True, exist_ok=True)
    common = ["g++", "-std=c++20", "-O1", "-g1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
              f"-I{csrc / 'include'}", f"-I{SHIM}", *flags]

    def compile_one(item: tuple[Path, list[str]]) -> str:
        source, extra = item
        target = str(out / ("_".join(source.parts[-3:]) + ".o"))
        run([*common, *extra, "-x", "c++", "-c", str(source), "-o", target])
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def torch_library(out: Path) -> Path:
    """The registration and the kernels, for CPU tensors."""
    csrc = ROOT / "csrc"
    registration = ["-DVTKERNELS_CUDA_SHIM", "-DTORCH_TARGET_VERSION=0x020A000000000000",
                    *(f"-isystem{path}" for path in include_paths())]
    sources = [(csrc / source, [] if source in KERNELS else registration) for source in SOURCES]
    sources += [(SHIM / "control.cpp", [])]
    target = out / "libvtkernels_cuda_shim.so"
    lib = Path(torch.__file__).parent / "lib"
    run(["g++", "-shared", *compile_objects(sources, csrc, out, []), "-o", str(target), f"-L{lib}", "-ltorch",
         "-ltorch_cpu", "-pthread"])
    return target


def smoke_objects(out: Path, flags: list[str]) -> Path:
    csrc = ROOT / "csrc"
    compile_objects([(csrc / source, []) for source in (*KERNELS, "smoke/cuda.cu")], csrc, out, flags)
    return out


def smoke_program(objects: Path, out: Path, flags: list[str], changed: tuple[Path, str] | None = None) -> Path:
    """The torch-free smoke program on the shim; `changed` is a tree of sources, and the one in it to compile anew."""
    parts = {p.name: str(p) for p in objects.glob("*.o")}
    if changed is not None:
        csrc, name = changed
        (new,) = compile_objects([(csrc / name, [])], csrc, out, flags)
        assert Path(new).name in parts
        parts[Path(new).name] = new
    target = out / "smoke"
    run(["g++", *flags, *parts.values(), "-o", str(target), "-pthread"])
    return target
