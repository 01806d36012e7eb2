"""What the Triton launchers share on the host: the launch, facts of the device, integer tuples without recompiles."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

MAX_PROGRAMS = 2**31 - 1  # grid.x
PARAMETER_WORDS = 512     # 8-byte words in the 4 KB of kernel parameters
DTYPE_BYTES = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}


def interpreted() -> bool:
    return bool(triton.knobs.runtime.interpret)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many programs can run at once, one per multiprocessor; the interpreter runs them one after the other."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@cache
def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"


def launch(kernel: Any, programs: int, device: torch.device, *args: Any, **options: Any) -> None:
    """Run a kernel on a grid of `programs`. Every launch of the package passes through here.

    With the option `fp_fusion=False` a product that is used twice is rounded before each use.
    """
    fp_fusion = options.pop("fp_fusion", True)
    if device.type == "cuda":
        backend = "hip" if torch.version.hip else "cuda"
        with torch.cuda.device(device):
            kernel[programs,](*args, **options, **compile_options(backend, options["num_warps"], fp_fusion))
    else:
        kernel[programs,](*args, **options)


def compile_options(backend: str, num_warps: int, fp_fusion: bool = True) -> dict[str, object]:
    """What every kernel is compiled with, beside its own options."""
    options: dict[str, object] = {"enable_fp_fusion": fp_fusion}  # explicit: the default changes with Triton 3.10
    if backend == "cuda":
        # With a limit of its own, ptxas no longer spills a few registers to fit one more block on a multiprocessor.
        options["maxnreg"] = min(255, 2048 // num_warps)
    return options


def aligned16(tensor: Tensor, *strides: int) -> bool:
    """Whether rows are contiguous and start at multiples of 16 bytes, so that loads can be 128 bits wide."""
    step = tensor.element_size()
    return tensor.stride(-1) == 1 and not any(v % 16 for v in (tensor.data_ptr(), *(s * step for s in strides)))


def pack(values: Sequence[int]) -> tuple[int, ...]:
    """Non-negative integers below 2**60 as a kernel's tuple argument; the kernel unpacks by `(word << 2) >> 3`.

    Triton specialises each integer of a tuple (equal to 1, divisible by 16, 32 or 64 bits), and `do_not_specialize`
    does not reach inside. In this form all of them are odd 64-bit numbers, so values never cause a recompile.
    """
    return tuple(1 << 62 | v << 1 | 1 for v in values)


def pow2_at_least(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
