"""The program that compute-sanitizer watches: hostile samples of every op, on chosen backends, one after the other.

Inputs are made on the host and copied, so that initcheck knows every byte of them as written.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtkernels import _dispatch, testing

DTYPES = (torch.float32, torch.bfloat16)
SIZED_BY_DTYPE = ("prototype_scores", "prune_topk", "prune_topk_varlen")
MAX_ELEMENTS = 5000  # a sanitizer slows a kernel a hundredfold


def moved(value: Any, device: str) -> Any:
    """Tensors on the device with their strides kept; numbers as they are."""
    if isinstance(value, Tensor):
        if value.device.type == device:
            return value
        if 0 in value.shape:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
        span = 1 + sum((s - 1) * abs(step) for s, step in zip(value.shape, value.stride(), strict=True))
        storage = value.as_strided((value.storage_offset() + span,), (1,), 0).to(device)
        return storage.as_strided(value.shape, value.stride(), value.storage_offset())
    if isinstance(value, (list, tuple)):
        return type(value)(moved(v, device) for v in value)
    if isinstance(value, dict):
        return {k: moved(v, device) for k, v in value.items()}
    return value


def chosen(op: str) -> list[testing.Sample]:
    """The samples that are small; of an op that has none, the three smallest."""
    samples = list(testing.SAMPLES[op](DTYPES) if op in SIZED_BY_DTYPE else testing.SAMPLES[op]())  # type: ignore[call-arg]
    sizes = [sum(t.numel() for t in _dispatch._tensors(s.args)) for s in samples]
    limit = max(MAX_ELEMENTS, sorted(sizes)[min(2, len(sizes) - 1)]) if min(sizes) > MAX_ELEMENTS else MAX_ELEMENTS
    return [s for s, size in zip(samples, sizes, strict=True) if size <= limit]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanitize_target", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backends", default="triton,cuda")
    options = parser.parse_args(argv)
    for backend in options.backends.split(","):
        calls, ops = 0, 0
        for op in testing.SAMPLES:
            if _dispatch.refusal(backend, options.device, op):
                continue
            ops += 1
            for sample in chosen(op):
                outputs = testing.run(op, backend, *moved(sample.args, options.device),
                                      **moved(sample.kwargs, options.device))
                if options.device == "cuda":
                    torch.cuda.synchronize()
                calls += 1
                del outputs
        print(f"{backend}: {calls} calls of {ops} ops", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
