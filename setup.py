"""Build of the native libraries. Everything else is in pyproject.toml.

`_C_cpu` is built where there is torch (>= 2.10) and a C++ compiler; `_C_cuda` where there is also nvcc and it is wanted
(a CUDA build of torch, or VTKERNELS_CUDA_ARCHS). Otherwise the wheel is pure Python, and says so. Both use torch's
stable ABI and no Python C API: one build serves every torch >= 2.10 and every Python >= 3.10.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
ABI = ["-DTORCH_TARGET_VERSION=0x020A000000000000"]
DEFAULT_ARCHS = "75;80;86;89;90;100;120"


def sources(library: str) -> list[str]:
    lines = [line.split() for line in (ROOT / "csrc/sources.txt").read_text().splitlines()]
    return [words[1] for words in lines if words and words[0] == library]


def find_torch():
    try:
        import torch
    except ImportError:
        return None
    return torch


def cuda_archs(torch) -> list[str]:
    wanted = os.environ.get("VTKERNELS_CUDA_ARCHS")
    if wanted:
        return (DEFAULT_ARCHS if wanted == "all" else wanted).replace(",", ";").split(";")
    if torch.cuda.is_available():
        return ["".join(map(str, torch.cuda.get_device_capability()))]
    return DEFAULT_ARCHS.split(";")


def extensions() -> list[Extension]:
    wanted = os.environ.get("VTKERNELS_BUILD_NATIVE", "auto")
    torch = find_torch()
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if wanted == "0" or torch is None or compiler is None:
        reason = "VTKERNELS_BUILD_NATIVE=0" if wanted == "0" else "torch is missing" if torch is None else "no compiler"
        if wanted == "1":
            raise SystemExit(f"VTKERNELS_BUILD_NATIVE=1, but {reason} (with pip: --no-build-isolation)")
        print(f"vtkernels: pure Python build, because {reason}", file=sys.stderr)
        return []
    built = [Extension("vtkernels._C_cpu", sources("cpu"))]
    nvcc_wanted = torch.version.cuda is not None or os.environ.get("VTKERNELS_CUDA_ARCHS")
    if sources("cuda") and nvcc_wanted and shutil.which("nvcc"):
        built.append(Extension("vtkernels._C_cuda", sources("cuda")))
    return built


class BuildNative(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        import torch
        from torch.utils.cpp_extension import include_paths

        is_cuda = ext.name.endswith("_cuda")
        includes = [f"-I{ROOT / 'csrc/include'}", *(f"-isystem{path}" for path in include_paths())]
        if is_cuda:
            compile_command = ["nvcc", "-std=c++17", "-O3", "-DUSE_CUDA", "-Xcompiler=-fPIC"]
            for arch in cuda_archs(torch):
                compile_command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
            includes = [i.replace("-isystem", "-isystem=") if i.startswith("-isystem") else i for i in includes]
        else:
            compiler = os.environ.get("CXX", "c++")
            compile_command = [compiler, "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall"]
        output = Path(self.get_ext_fullpath(ext.name))
        objects = Path(self.build_temp) / ext.name
        objects.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)

        def compile_one(source: str) -> str:
            target = str(objects / (source.replace("/", "_") + ".o"))
            subprocess.run([*compile_command, *ABI, *includes, "-c", source, "-o", target], cwd=ROOT, check=True)
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = list(pool.map(compile_one, ext.sources))
        library = Path(torch.__file__).parent / "lib"
        link = [compile_command[0], "-shared", *compiled, "-o", str(output), f"-L{library}", "-ltorch", "-ltorch_cpu"]
        if is_cuda and (library / "libtorch_cuda.so").exists():
            link.append("-ltorch_cuda")
        subprocess.run(link, cwd=ROOT, check=True)


class AnyPythonWheel(bdist_wheel):
    """The libraries need no Python ABI, so the wheel fits every Python 3 on the platform."""

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPythonWheel})
