"""Compile Triton kernels ahead of time, exactly as the launchers would launch them, for GPUs that are not there."""

import re
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vtkernels import _triton

ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")
# The most shared memory that a block may have (CUDA programming guide; LDS on gfx942).
SHARED_LIMIT = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}
REGISTER_LIMIT = {arch: 512 if arch.startswith("gfx") else 255 for arch in ARCHS}
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float64: "*fp64",
            torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8", torch.int16: "*i16", torch.int8: "*i8"}


class Launch(NamedTuple):
    kernel: Any
    args: tuple
    options: dict[str, Any]


def record(call: Callable[[], None]) -> list[Launch]:
    """The launches that `call` would make on a GPU, none of which happens."""
    launches = []

    def launch(kernel: Any, programs: int, device: torch.device, *args: Any, **options: Any) -> None:
        launches.append(Launch(kernel, args, options))

    with mock.patch.object(_triton, "launch", launch), mock.patch.object(_triton, "interpreted", return_value=False):
        call()
    return launches


def target(arch: str) -> GPUTarget:
    return GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch[3:]), 32)


class Specialisation(NamedTuple):
    """What of a launch decides which machine code runs."""

    signature: dict[str, Any]
    constants: dict[Any, Any]
    attributes: dict[Any, Any]
    options: dict[str, Any]

    def key(self, kernel: Any) -> str:
        return repr((kernel.__name__, *(sorted(part.items(), key=str) for part in self)))


def specialised(launch: Launch) -> Specialisation:
    """The specialisation that the launch would get: constants, integer types, aligned pointers."""
    values = dict(zip(launch.kernel.arg_names, launch.args, strict=False))
    options = dict(launch.options)
    values |= {name: options.pop(name) for name in list(options) if name in launch.kernel.arg_names}
    signature: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}
    for i, param in enumerate(launch.kernel.params):
        value = values.get(param.name, param.default)
        if param.is_constexpr or value is None:
            signature[param.name] = "constexpr"
            constants[i,] = value
        elif isinstance(value, torch.Tensor):
            signature[param.name] = POINTERS[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[i,] = [["tt.divisibility", 16]]
        elif isinstance(value, tuple):
            assert all(v >> 62 == 1 and v % 2 for v in value), "a tuple that was not packed recompiles with its values"
            signature[param.name] = ("i64",) * len(value)
        else:
            assert param.do_not_specialize, f"{launch.kernel.__name__}: {param.name} recompiles with its value"
            signature[param.name] = param.annotation_type
    return Specialisation(signature, constants, attributes, options)


def compiled(launch: Launch, arch: str) -> Any:
    """The kernel as the launch would run it."""
    signature, constants, attributes, options = specialised(launch)
    source = ASTSource(launch.kernel, signature, constexprs=constants, attrs=attributes)
    options |= _triton.compile_options(target(arch).backend, options["num_warps"], options.pop("fp_fusion", True))
    return triton.compile(source, target=target(arch), options=options)


@cache
def _tool(name: str) -> Path:
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def resources(kernel: Any, arch: str) -> dict[str, int]:
    """REG, STACK (where spills show) and SHARED bytes of a compiled kernel."""
    if arch.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        # Scalar registers spill into lanes of vector registers, with a stack slot in reserve: only its use counts.
        spills = sum(int(n) for n in re.findall(r"\.vgpr_spill_count:\s*(\d+)", text))
        accesses = len(re.findall(r"^\s*scratch_", text, re.MULTILINE))
        vgprs = max(int(n) for n in re.findall(r"\.vgpr_count:\s*(\d+)", text))
        return {"REG": vgprs, "STACK": spills + accesses, "SHARED": kernel.metadata.shared}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        # The bundled tool: a system's cuobjdump may be older than the cubin.
        usage = subprocess.run([_tool("cuobjdump"), "--dump-resource-usage", file.name], capture_output=True, text=True,
                               check=True).stdout
    found = dict(re.findall(r"(REG|STACK|SHARED):(\d+)", usage))
    static = {name: int(value) for name, value in found.items()}
    return {**static, "SHARED": max(static["SHARED"], kernel.metadata.shared)}
