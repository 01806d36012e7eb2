"""The CUDA sources on the CPU (see test_cuda_shim.py) under the address and the thread sanitizer.

`make sanitize` runs it. A sanitizer proves something only if it reports a defect: each runs clean, then on sources with
one planted.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from cuda_shim import build

pytestmark = pytest.mark.sanitize
if shutil.which("g++") is None and os.environ.get("CI") != "true":
    pytest.skip("g++ is missing", allow_module_level=True)

FLAGS = {
    # bf16 without tensor cores
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DSHIM_THREADS", "-DSHIM_ARCH=750"],
    "thread": ["-fsanitize=thread", "-DSHIM_THREADS"],
}
SECTIONS = ("select", "select-packed", "select-ragged", "temporal", "gather", "gather-inplace", "paged", "quantize",
            "scores", "match", "attention", "prune", "prune-varlen")


class Defect(NamedTuple):
    name: str
    sanitizer: str
    source: str
    file: str
    code: str
    replacement: str
    section: str  # of the smoke program, which runs into it
    report: tuple[str, str]


DEFECTS = (
    Defect("overrun", "address", "cuda/gather.cu", "gather.cuh",
           "if (index >= (kInPlace ? token : 0) && index < p.tokens) {", "if (index >= (kInPlace ? token : 0)) {",
           "gather", ("heap-buffer-overflow", "gather.cuh")),
    Defect("wild-page", "address", "cuda/paged.cu", "paged.cuh", "return page >= 0 && page < p.blocks; }",
           "return page >= 0; }", "paged", ("AddressSanitizer", "paged.cuh")),
    Defect("overrun-of-channels", "address", "cuda/quantize.cu", "quantize.cuh",
           "at + i < size ? arch::to_float", "at + i <= size ? arch::to_float", "quantize",
           ("heap-buffer-overflow", "quantize.cuh")),
    Defect("wild-token", "address", "cuda/dequantize.cu", "quantize.cuh", "return t >= 0 && t < tokens ? t : -1;",
           "return t;", "quantize", ("heap-buffer-overflow", "dequantize.cu")),
    Defect("overrun-of-ranks", "address", "cuda/select.cu", "masks.cuh",
           "other < count ? rank_key(row, chosen[other]) : 0;", "rank_key(row, chosen[other]);",
           "select", ("AddressSanitizer", "masks.cuh")),
    Defect("missing-barrier-of-ranks", "thread", "cuda/select_packed.cu", "masks.cuh",
           "__syncthreads();\n#pragma unroll 8", "#pragma unroll 8", "select-packed", ("data race", "masks.cuh")),
    Defect("missing-barrier-of-weights", "thread", "cuda/select_ragged.cu", "top_p.cuh",
           "s.weights[threadIdx.x] = 0;\n      __syncthreads();", "s.weights[threadIdx.x] = 0;",
           "select-ragged", ("data race", "top_p.cuh")),
    Defect("missing-barrier-of-sums", "thread", "cuda/temporal.cu", "temporal.cuh",
           "__syncthreads();\n      if (threadIdx.x != 0) return;", "if (threadIdx.x != 0) return;",
           "temporal", ("data race", "temporal.cuh")),
    Defect("missing-barrier", "thread", "cuda/select.cu", "select.cuh",
           "s.histogram[threadIdx.x] = 0;\n      __syncthreads();", "s.histogram[threadIdx.x] = 0;",
           "select", ("data race", "select.cuh")),
    Defect("missing-barrier-of-pages", "thread", "cuda/paged.cu", "paged.cuh", "if (in_place) __syncthreads();",
           "(void)in_place;", "paged", ("data race", "paged.cuh")),
    Defect("missing-barrier-of-channels", "thread", "cuda/quantize.cu", "quantize.cu",
           "    __syncthreads();\n    const int channel = threadIdx.x;", "    const int channel = threadIdx.x;",
           "quantize", ("data race", "quantize.cu")),
    Defect("stored-before-it-is-read", "thread", "cuda/gather.cu", "gather.cuh",
           "if constexpr (kInPlace) __syncthreads();", "", "gather-inplace", ("data race", "arch::load")),
)


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> Callable[[str], Path]:
    """The smoke program's objects, compiled once for the sanitizer of a name."""
    return cache(lambda sanitizer: build.smoke_objects(tmp_path_factory.mktemp(sanitizer), FLAGS[sanitizer]))


def smoke(program: Path, *sections: str) -> subprocess.CompletedProcess:
    return subprocess.run([program, *sections], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("sanitizer", FLAGS)
def test_nothing_is_reported(tmp_path, objects, sanitizer):
    done = smoke(build.smoke_program(objects(sanitizer), tmp_path, FLAGS[sanitizer]), *SECTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "smoke: ok" in done.stdout


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: f"{d.sanitizer}-{d.name}")
def test_a_planted_defect_is_reported(tmp_path, objects, defect):
    csrc = tmp_path / "csrc"
    shutil.copytree(build.ROOT / "csrc", csrc)
    (file,) = csrc.rglob(defect.file)
    text = file.read_text()
    assert text.count(defect.code) == 1
    file.write_text(text.replace(defect.code, defect.replacement))
    program = build.smoke_program(objects(defect.sanitizer), tmp_path, FLAGS[defect.sanitizer], (csrc, defect.source))
    done = smoke(program, defect.section)
    assert done.returncode != 0
    for words in defect.report:
        assert words in done.stderr
