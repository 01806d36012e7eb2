"""The native build: stable ABI only, the same libraries from CMake, a torch-free smoke program, wheels."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vtkernels import _native

ROOT = Path(__file__).parents[1]


def run(*command: str, **env: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_library_needs_only_the_stable_abi():
    symbols = run("nm", "-D", "--undefined-only", "--demangle", str(_native.path("_C_cpu")))
    bad = [line for line in symbols.splitlines() if re.search(r"\b(at|c10|torch)::", line)]
    assert not bad, bad[:5]
    assert "aoti_torch_get_sizes" in symbols
    needed = run("readelf", "-d", str(_native.path("_C_cpu")))
    assert "libpython" not in needed
    assert "libtorch_python" not in needed
    assert "libc10" not in needed


def test_only_the_c_interface_is_exported():
    symbols = run("nm", "-D", "--defined-only", "--demangle", str(_native.path("_C_cpu")))
    ours = {line.split()[-1] for line in symbols.splitlines() if "vtk" in line}
    assert {"vtk_cpu_isa", "vtk_cpu_select_topk", "vtk_cpu_gather", "vtk_cpu_prototype_scores"} <= ours
    assert not [name for name in ours if "vtkernels::" in name]


def test_every_source_is_listed_once():
    listed = [line.split()[1] for line in (ROOT / "csrc/sources.txt").read_text().splitlines()
              if line and not line.startswith("#")]
    present = [str(p.relative_to(ROOT)) for d in ("cpu", "cuda", "torch") for p in (ROOT / "csrc" / d).rglob("*.c*")
               if p.suffix in (".cpp", ".cu")]
    assert sorted(listed) == sorted(present)


@pytest.fixture(scope="module")
def cmake(tmp_path_factory) -> Path:
    """The build folder of CMake."""
    if not shutil.which("cmake") or not shutil.which("ninja"):
        pytest.skip("cmake or ninja is missing")
    # The optimised build is what every other test runs on; this one is about sources, symbols and linking.
    folder = tmp_path_factory.mktemp("cmake")
    run("cmake", "-S", ".", "-B", str(folder), "-G", "Ninja", f"-DPython3_EXECUTABLE={sys.executable}",
        "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0")
    run("cmake", "--build", str(folder), "-j", "2")
    return folder


def test_cmake_builds_the_same_and_the_smoke_program_runs(cmake):
    assert "smoke: ok" in run(str(cmake / "smoke_cpu"))
    exported = [run("nm", "-D", "--defined-only", str(p)) for p in (cmake / "_C_cpu.so", _native.path("_C_cpu"))]
    names = [sorted(line.split()[-1] for line in text.splitlines() if "vtk_" in line) for text in exported]
    assert names[0] == names[1]


# Takes the objects that CMake has built: this wheel's library never runs, and its files, tags and linking are the same.
BORROW = """#!/bin/sh
case "$*" in
*" -c "*) source=${*#* -c }; exec cp "$(find FOLDER -path "*/${source%% *}.o")" "${source##* }" ;;
*) exec c++ "$@" ;;
esac
"""


@pytest.mark.parametrize(("native", "tag", "library"), [("0", "py3-none-any", False), ("1", "py3-none-linux", True)])
def test_wheels(tmp_path, cmake, native, tag, library):
    source = tmp_path / "source"
    unneeded = shutil.ignore_patterns(".git", ".venv*", "*.so", "build", "demo_out", "results")
    shutil.copytree(ROOT, source, ignore=unneeded)
    compiler = tmp_path / "borrowed-c++"
    compiler.write_text(BORROW.replace("FOLDER", str(cmake)))
    compiler.chmod(0o755)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(tmp_path),
        str(source), VTKERNELS_BUILD_NATIVE=native, CXX=str(compiler))
    (wheel,) = tmp_path.glob("*.whl")
    assert tag in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert ("vtkernels/_C_cpu.so" in names) == library
    assert "vtkernels/_library.py" in names
    assert any(n.endswith(".safetensors") for n in names)
    assert any(n.startswith("vtkernels/tuning/configs/") and n.endswith(".json") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/"))]
