"""Build the engine's Python module with ninja, against the native library of the installed vtkernels.

Run it to build and try it: `python examples/cpp_engine/build.py`.
"""

import os
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch.utils import cpp_extension

import vtkernels
from vtkernels import _native

HERE = Path(__file__).parent
HEADERS = HERE.parents[1] / "csrc/include"


def load(folder: str | None = None, verbose: bool = False) -> ModuleType:
    """The module, compiled into `folder` (default: torch's cache of extensions) unless it is there and up to date."""
    reason = _native.load("_C_cpu")
    if reason:
        raise RuntimeError(f"the engine links the native library of vtkernels: {reason}")
    library = _native.path("_C_cpu")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja of the environment
    return cpp_extension.load(
        "cpp_engine", [str(HERE / "engine.cpp"), str(HERE / "bindings.cpp")], extra_cflags=["-O1", "-Wall"],
        extra_include_paths=[str(HEADERS)], build_directory=folder, verbose=verbose,
        extra_ldflags=[f"-L{library.parent}", f"-l:{library.name}", f"-Wl,-rpath,{library.parent}"])


def main() -> None:
    """Two images, of 600 and 300 visual tokens, on a pool that holds only one of them whole."""
    engine = load(verbose=True).Engine(torch.randn(64, 256), layers=4, pages=60, page_size=16, heads=4, head_dim=64,
                                       max_requests=4, max_tokens=1024)
    ids = []
    for visual in (600, 300):
        n = 32 + visual + 16
        ids.append(engine.admit(*torch.randn(2, 4, n, 4, 64), 32, visual))
        print(f"admitted {n} tokens, {engine.free_pages} pages free")
        engine.prune(ids[-1:], torch.randn(n, 256), [visual // 4])
        print(f"pruned to {engine.length(ids[-1])} tokens, {engine.free_pages} pages free")
    out = engine.decode(ids[0], torch.randn(4, 16, 64), *torch.randn(2, 4, 4, 64))
    print(f"decoded over {engine.length(ids[0])} tokens: {tuple(out.shape)}; {vtkernels.__version__=}")


if __name__ == "__main__":
    main()
