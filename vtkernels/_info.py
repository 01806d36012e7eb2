"""What `python -m vtkernels info` prints: versions, compilers, native libraries, environment."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from . import _dispatch, _env, _native
from ._version import __version__


def info() -> str:
    rows = [
        ("vtkernels", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", torch.__version__),
        ("CUDA", _cuda()),
        ("triton", _version("triton")),
        ("C++ compiler", _compiler(os.environ.get("CXX") or "c++", "g++", "clang++")),
        ("nvcc", _compiler("nvcc")),
        ("_C_cpu", _native.load("_C_cpu") or "loaded"),
        ("_C_cuda", _native.load("_C_cuda") or "loaded"),
        ("CPU kernels", _native.cpu_isa() or "none, the reference runs"),
        ("backends on cpu", _order("cpu")),
        ("backends on cuda", _order("cuda")),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    lines += ["", "environment"]
    width = max(len(name) for name, _, _ in _env.TABLE)
    for name, default, meaning in _env.TABLE:
        value = os.environ.get(name)
        lines.append(f"  {name:<{width}}  {f'(default {default!r})' if value is None else repr(value):<18}  {meaning}")
    return "\n".join(lines)


def _cuda() -> str:
    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without it"
        return f"not available (torch was built {built})"
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"{torch.version.cuda or torch.version.hip}: {names}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _compiler(*names: str) -> str:
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        return "not found"
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path}, does not run ({error})"
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    release = next((line for line in lines if "release" in line), lines[0] if lines else "no version")
    return f"{path}, {release.strip()}"


def _order(device: str) -> str:
    parts = []
    for backend in _dispatch.ORDER[device]:
        reason = _dispatch.refusal(backend, device)
        parts.append(f"{backend} (no: {reason})" if reason else backend)
    return ", then ".join(parts)
