"""Build of the native libraries. Everything else is in pyproject.toml.

`_C_cpu` is built where there is torch (>= 2.10) and a C++ compiler; `_C_cuda` where there is also nvcc and it is wanted
(a CUDA build of torch, or VTKERNELS_CUDA_ARCHS). Otherwise the wheel is pure Python, and says so. Both use torch's
stable ABI and no Python C API: one build serves every torch >= 2.10 and every Python >= 3.10.

The build reads torch's headers and links against its libraries, but imports it only to ask for the GPU at hand. With
SOURCE_DATE_EPOCH the same sources, compiler and torch give the same bytes, wherever both lie.
"""

import hashlib
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import uuid
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


def find_torch() -> Path | None:
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None


def torch_version(torch: Path) -> dict[str, str | None]:
    return runpy.run_path(str(torch / "version.py"))


def cuda_archs() -> list[str]:
    wanted = os.environ.get("VTKERNELS_CUDA_ARCHS")
    if wanted:
        return (DEFAULT_ARCHS if wanted == "all" else wanted).replace(",", ";").split(";")
    import torch

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
    archs = os.environ.get("VTKERNELS_CUDA_ARCHS")
    nvcc_wanted = archs != "none" and (archs or torch_version(torch)["cuda"] is not None)
    if archs and nvcc_wanted and shutil.which("nvcc") is None:
        raise SystemExit(f"VTKERNELS_CUDA_ARCHS={archs}, but nvcc is missing")
    if sources("cuda") and nvcc_wanted and shutil.which("nvcc"):
        built.append(Extension("vtkernels._C_cuda", sources("cuda")))
    return built


class BuildNative(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        torch = find_torch()
        if torch is None:
            raise SystemExit(f"{ext.name} needs torch (with pip: --no-build-isolation)")
        is_cuda = ext.name.endswith("_cuda")
        headers = torch / "include", torch / "include/torch/csrc/api/include"
        includes = [f"-I{ROOT / 'csrc/include'}", *(f"-isystem{path}" for path in headers)]
        # Messages of torch's checks name its headers: not by where they lie on this machine.
        maps = [f"-ffile-prefix-map={torch}=torch", f"-ffile-prefix-map={ROOT}=."]
        if is_cuda:
            compile_command = ["nvcc", "-std=c++17", "-O3", "-DUSE_CUDA", "-Xcompiler=-fPIC"]
            compile_command += [f"-Xcompiler={option}" for option in maps]
            for arch in cuda_archs():
                compile_command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
            includes = [i.replace("-isystem", "-isystem=") if i.startswith("-isystem") else i for i in includes]
        else:
            compiler = os.environ.get("CXX", "c++")
            compile_command = [compiler, "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", *maps]
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
        library = torch / "lib"
        link = [compile_command[0], "-shared", *compiled, "-o", str(output), f"-L{library}", "-ltorch", "-ltorch_cpu"]
        if is_cuda and (library / "libtorch_cuda.so").exists():
            link.append("-ltorch_cuda")
        subprocess.run(link, cwd=ROOT, check=True)


def bill_of_materials(distribution, root: Path) -> dict:
    """CycloneDX: what the package asks for at run time, and those of its files that are no sources."""
    name, version = distribution.get_name(), distribution.get_version()
    needed = sorted((re.match(r"[\w.-]+", text)[0], text) for text in distribution.install_requires)
    components = [{"type": "library", "bom-ref": f"pkg:pypi/{dep}", "name": dep, "purl": f"pkg:pypi/{dep}",
                   "scope": "required", "properties": [{"name": "vtkernels:requires", "value": text}]}
                  for dep, text in needed]
    components += [file_component(p, root) for p in sorted(root.rglob("*")) if p.suffix in (".so", ".safetensors")]
    itself = {"type": "library", "bom-ref": name, "name": name, "version": version,
              "purl": f"pkg:pypi/{name}@{version}", "licenses": [{"license": {"id": "Apache-2.0"}}]}
    bill = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "metadata": {"component": itself},
            "components": components,
            "dependencies": [{"ref": name, "dependsOn": [c["bom-ref"] for c in components]}]}
    # No random number and no clock: the same contents have the same bill.
    return {**bill, "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bill))}"}


def file_component(file: Path, root: Path) -> dict:
    path = file.relative_to(root).as_posix()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    component = {"type": "file", "bom-ref": path, "name": path, "hashes": [{"alg": "SHA-256", "content": digest}]}
    if file.suffix == ".so":
        origin = {"compiler": compiler_version(path), "torch-headers": torch_version(find_torch())["__version__"]}
        component["properties"] = [{"name": f"vtkernels:{key}", "value": value} for key, value in origin.items()]
    return component


def compiler_version(library: str) -> str:
    command = "nvcc" if library.endswith("_cuda.so") else os.environ.get("CXX", "c++")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    return next((line for line in lines if "release" in line), lines[0])


class AnyPythonWheel(bdist_wheel):
    """The libraries need no Python ABI, so the wheel fits every Python 3 on the platform."""

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])

    def write_wheelfile(self, wheelfile_base: str, *args: str) -> None:
        """What is last before the archive is written: a bill of materials (PEP 770), modes that no umask changes."""
        super().write_wheelfile(wheelfile_base, *args)
        root = Path(self.bdist_dir)
        path = Path(wheelfile_base) / "sboms/vtkernels.cdx.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(bill_of_materials(self.distribution, root), indent=1) + "\n")
        for file in root.rglob("*"):
            file.chmod(0o755 if file.is_dir() or file.suffix == ".so" else 0o644)


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPythonWheel})
