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


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}"[-6000:])


def cpu_sources(root: Path) -> list[str]:
    lines = [line.split() for line in (root / "csrc/sources.txt").read_text().splitlines()]
    return [words[1] for words in lines if words and words[0] == "cpu"]


def is_stale(target: Path, root: Path) -> bool:
    depends = target.with_suffix(".d")
    if not target.exists() or not depends.exists():
        return True
    files = [Path(word) for word in depends.read_text().replace("\\\n", " ").split()[1:]]
    return any(not f.exists() or f.stat().st_mtime > target.stat().st_mtime
               for f in (file if file.is_absolute() else root / file for file in files))


def compile_objects(root: Path, sources: Sequence[str], out: Path, flags: Sequence[str]) -> list[Path]:
    """An object for each source of the tree `root`, compiled where the one in `out` is older than what it includes."""
    out.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{root / 'csrc/include'}", *(f"-isystem{path}" for path in include_paths())]

    def compile_one(source: str) -> Path:
        target = out / (source.replace("/", "_") + ".o")
        if is_stale(target, root):
            target.unlink(missing_ok=True)
            _run(["g++", *FLAGS, *flags, *includes, "-MMD", "-c", str(root / source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def link(objects: Sequence[Path], target: Path, flags: Sequence[str] = ()) -> Path:
    library = Path(torch.__file__).parent / "lib"
    _run(["g++", "-shared", *flags, *map(str, objects), "-o", str(target), f"-L{library}", "-ltorch", "-ltorch_cpu",
          "-pthread"])
    return target
