"""The native libraries that mutants change: compiled once, then only the objects that include the changed file."""

import shutil
from pathlib import Path
from typing import NamedTuple

from ..cuda_shim import build as shim
from ..sanitize.build import ROOT, compile_objects, compiled_from, cpu_sources, link, object_of

CUDA = ("csrc/cuda/", "csrc/include/vtkernels/cuda/", "csrc/torch/cuda/")


class Library(NamedTuple):
    path: str  # in a tree
    sources: tuple[str, ...]
    flags: tuple[str, ...]

    def build(self, tree: Path, objects: Path) -> None:
        link(compile_objects(tree, self.sources, objects, self.flags), tree / self.path)

    def rebuild(self, file: str, clean: Path, objects: Path, tree: Path, changed: Path) -> None:
        """The library of a tree in which one file is another than in the clean tree, whose objects are at hand."""
        of = {s: object_of(s, objects) for s in self.sources}
        stale = [s for s in of if clean / file in map(Path.resolve, compiled_from(of[s], clean))]
        shutil.rmtree(changed, ignore_errors=True)
        of |= dict(zip(stale, compile_objects(tree, stale, changed, self.flags), strict=True))
        link(list(of.values()), tree / self.path)


CPU = Library("vtkernels/_C_cpu.so", tuple(cpu_sources(ROOT)), ("-O1",))  # the arithmetic is the same but for speed
# The CUDA kernels for the CPU. A defect may leave a variable unused.
SHIM = Library("tests/cuda_shim/kernels.so", shim.LIBRARY_SOURCES, (*shim.FLAGS, "-Wno-error"))


def library_of(file: str) -> Library | None:
    """The one to build anew for a mutant of this file."""
    if file.startswith(CUDA):
        return SHIM
    return CPU if file.startswith("csrc/") else None
