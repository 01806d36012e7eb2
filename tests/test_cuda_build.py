"""nvcc compiles every CUDA source for every architecture without a warning or a register spill."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[1]
ARCHS = (75, 80, 86, 89, 90, 100, 120)
LISTED = [line.split()[1] for line in (ROOT / "csrc/sources.txt").read_text().splitlines() if line.startswith("cuda ")]
SOURCES = [str(ROOT / source) for source in LISTED if source.endswith(".cu")]
REGISTRATION = [str(ROOT / source) for source in LISTED if source.endswith(".cpp")]
SMOKE = str(ROOT / "csrc/smoke/cuda.cu")  # without a kernel: one architecture is enough
GATES = ["-Xptxas", "--warn-on-spills", "-Werror", "all-warnings"]


def nvcc(*arguments: str) -> subprocess.CompletedProcess:
    if shutil.which("nvcc") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have nvcc")
        pytest.skip("nvcc is missing")
    return subprocess.run(["nvcc", "-std=c++17", "-O3", *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> dict[str, list[Path]]:
    """The objects of the kernels, of the smoke program and of the registration."""
    include = f"-I{ROOT / 'csrc/include'}"
    archs = [word for a in ARCHS for word in ("-gencode", f"arch=compute_{a},code=sm_{a}")]
    calls = {"kernels": ["--threads", "2", "-Xcompiler", "-Wall", *archs, *SOURCES],
             "smoke": ["-Xcompiler", "-Wall", *archs[-2:], SMOKE],
             "registration": [*(f"-isystem={path}" for path in include_paths()), "-DUSE_CUDA",
                              "-DTORCH_TARGET_VERSION=0x020A000000000000", *REGISTRATION]}
    built = {}
    for name, arguments in calls.items():
        out = tmp_path_factory.mktemp(name)
        done = nvcc(include, *GATES, *arguments, "-c", "--output-directory", str(out))
        assert done.returncode == 0, done.stdout + done.stderr
        built[name] = sorted(out.glob("*.o"))
    return built


def test_every_source_compiles(objects):
    assert [len(built) for built in objects.values()] == [len(SOURCES), 1, len(REGISTRATION)]


def undefined_symbols(objects: list[Path]) -> str:
    command = ["nm", "--undefined-only", "--demangle", *map(str, objects)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_only_the_stable_abi_is_used(objects):
    ours, registration = undefined_symbols(objects["kernels"] + objects["smoke"]), undefined_symbols(
        objects["registration"])
    assert not re.search(r"\b(at|c10)::", registration)
    assert "aoti_torch_get_current_cuda_stream" in registration
    assert not re.search(r"\b(at|c10)::|torch", ours)


@pytest.mark.parametrize(("code", "message"), [
    ("__global__ void kernel(int* p) { int unused; p[0] = 1; }", "unused"),
    ("__global__ void __launch_bounds__(1024, 2) kernel(const float* p, float* q) {\n"
     "  float r[96];\n"
     "#pragma unroll\n  for (int i = 0; i < 96; ++i) r[i] = p[i * 1024 + threadIdx.x];\n"
     "  __syncthreads();\n"
     "#pragma unroll\n  for (int i = 0; i < 96; ++i) q[i * 1024 + threadIdx.x] = r[i] * r[95 - i];\n}", "spill"),
])
def test_the_gates_can_fail(tmp_path, code, message):
    source = tmp_path / "bad.cu"
    source.write_text(code)
    done = nvcc("-gencode", "arch=compute_90,code=sm_90", *GATES, "-c", str(source), "-o", str(tmp_path / "bad.o"))
    assert done.returncode != 0
    assert message in (done.stdout + done.stderr).lower()
