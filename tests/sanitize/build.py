"""Builds the native CPU library from a tree of sources into a scratch folder, only what changed."""

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[2]
FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020A000000000000")


class BuildError(RuntimeError):
    """The compiler or the linker refused."""


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}"[-6000:])


def cpu_sources(root: Path) -> list[str]:
    lines = [line.split() for line in (root / "csrc/sources.txt").read_text().splitlines()]
    return [words[1] for words in lines if words and words[0] == "cpu"]


def compiled_from(target: Path, root: Path) -> list[Path]:
    """The files that an object was compiled from."""
    words = target.with_suffix(".d").read_text().replace("\\\n", " ").split()[1:]
    return [root / word for word in words]


def is_stale(target: Path, root: Path) -> bool:
    if not target.exists() or not target.with_suffix(".d").exists():
        return True
    return any(not f.exists() or f.stat().st_mtime > target.stat().st_mtime for f in compiled_from(target, root))


def object_of(source: str, out: Path) -> Path:
    return out / (source.replace("/", "_") + ".o")


def compile_objects(root: Path, sources: Sequence[str], out: Path, flags: Sequence[str]) -> list[Path]:
    """An object for each source of the tree `root`, compiled where the one in `out` is older than what it includes."""
    out.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{root / 'csrc/include'}", *(f"-isystem{path}" for path in include_paths())]

    def compile_one(source: str) -> Path:
        target = object_of(source, out)
        if is_stale(target, root):
            target.unlink(missing_ok=True)
            run(["g++", *FLAGS, *flags, *includes, "-MMD", "-c", str(root / source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def link(objects: Sequence[Path], target: Path, flags: Sequence[str] = ()) -> Path:
    library = Path(torch.__file__).parent / "lib"
    run(["g++", "-shared", *flags, *map(str, objects), "-o", str(target), f"-L{library}", "-ltorch", "-ltorch_cpu",
          "-pthread"])
    return target
