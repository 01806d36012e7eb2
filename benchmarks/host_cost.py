"""Host cost of one call with everything small: the op as torch dispatches it, less the raw kernel call.

The raw kernel is called through the C interface of `_C_cpu`, and what the foreign-function call itself costs is taken
off: the same arguments to a C function that does nothing. So the difference holds everything above the kernel: torch's
parsing of the Python arguments, dispatch, checks, allocation of the outputs. Beside it stands torch's own part, the
call of a C++ op with the same schema and an empty body; the rest is ours. It includes what the kernels lose when they
no longer run back to back, with all of the first-level caches to themselves.
"""

import argparse
import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from vtkernels import _dispatch, _library, _native
from vtkernels.testing import rand

from . import empty_ops

LIMIT_US = 3.0
REPEATS, CALLS = 200, 200  # short batches, so that some fall into a quiet moment of the machine
N, D, P, K = 8, 8, 2, 4


def lowest_us(run: Callable[..., Any], *args: Any) -> float:
    """Microseconds of one call: the lowest of many means, which other work on the machine disturbs least."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(CALLS):
            run(*args)
        best = min(best, time.perf_counter() - start)
    return best / CALLS * 1e6


def small_calls() -> dict[str, tuple]:
    hidden, prototypes, kv = rand(1, N, D), rand(P, D, seed=1), [rand(1, 1, N, D, seed=s) for s in (2, 3)]
    indices = torch.arange(K)[None]
    cu_seqlens, k = torch.tensor([0, N], dtype=torch.int32), torch.tensor([K], dtype=torch.int32)
    return {
        "prototype_scores": (hidden, prototypes),
        "select_topk": (hidden[:, :, 0].contiguous(), K),
        "gather_tokens": ([hidden], indices),
        "gather_kv": (kv, indices),
        "prune_topk": (hidden, prototypes, K, kv),
        "prune_topk_varlen": (hidden[0], prototypes, cu_seqlens, k, K, [t[0] for t in kv]),
    }


def raw_kernels_us(library: ctypes.CDLL) -> dict[str, float]:
    """Microseconds of each stage's kernel on the same small problem, without the foreign-function call."""
    i32, i64, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
    tokens, prototypes, scores, indices, out = rand(N, D), rand(P, D), rand(N), torch.arange(K), torch.empty(K, D)
    positions = torch.empty(K, dtype=torch.int64)
    at = {name: t.data_ptr() for name, t in
          (("x", tokens), ("p", prototypes), ("s", scores), ("i", indices), ("o", out), ("k", positions))}
    calls: dict[str, tuple[Any, tuple, tuple]] = {
        "score": (library.vtk_cpu_prototype_scores, (i32, pointer, i64, i64, pointer, i64, pointer),
                  (0, at["x"], N, D, at["p"], P, at["s"])),
        "select": (library.vtk_cpu_select_topk, (pointer, i64, i64, i32, pointer), (at["s"], N, K, 0, at["k"])),
        "gather": (library.vtk_cpu_gather, (pointer, i64, i64, pointer, i64, pointer),
                   (at["x"], N, 4 * D, at["i"], K, at["o"])),
    }
    nothing = ctypes.cast(library.vtk_cpu_isa, pointer).value
    assert nothing is not None
    times = {}
    for stage, (kernel, types, args) in calls.items():
        prototype = ctypes.CFUNCTYPE(None, *types)
        address = ctypes.cast(kernel, pointer).value
        assert address is not None
        full, empty = prototype(address), prototype(nothing)
        times[stage] = max(0.0, lowest_us(full, *args) - lowest_us(empty, *args))
    return times


# How many calls of each stage's kernel one call of the op makes.
STAGES = {
    "prototype_scores": {"score": 1},
    "select_topk": {"select": 1},
    "gather_tokens": {"gather": 1},
    "gather_kv": {"gather": 2},
    "prune_topk": {"score": 1, "select": 1, "gather": 3},
    "prune_topk_varlen": {"score": 1, "select": 1, "gather": 3},
}


def measure_cpu() -> list[dict[str, Any]]:
    """Two rows per op of the native CPU backend: functional and `.out`. Raises `RuntimeError` where it is not built."""
    reason = _native.load("_C_cpu")
    if reason:
        raise RuntimeError(f"host cost needs the native CPU backend: {reason}")
    raw = raw_kernels_us(ctypes.CDLL(str(_native.path("_C_cpu"))))
    calls = small_calls()
    library = empty_ops.load([name + variant for name in calls for variant in ("", ".out")])
    rows = []
    with torch.inference_mode():
        for name, args in calls.items():
            kernel = sum(raw[stage] * count for stage, count in STAGES[name].items())
            op, empty = _dispatch.function(name, "cpu"), getattr(torch.ops.vtkernels_empty, name)
            results = op(*args)
            results = results if isinstance(results, tuple) else (results,)
            outs = dict(zip(_library.OUT_ARGS[name], results, strict=True))
            for variant, run, base, buffers in (("", op, empty.default, {}),
                                                (".out", _dispatch.function(f"{name}.out", "cpu"), empty.out, outs)):
                total, torch_us = (lowest_us(partial(f, *args, **buffers)) for f in (run, base))
                rows.append({"op": name + variant, "call_us": total, "kernel_us": kernel, "host_us": total - kernel,
                             "torch_us": torch_us, "ours_us": total - kernel - torch_us})
    del library
    return rows


def yardsticks_us() -> dict[str, float]:
    """What torch's own C++ ops cost here, called the same way on tensors as small."""
    x, index = rand(N, D), torch.arange(K)
    ops: dict[str, tuple[Any, tuple]] = {
        "aten.index_select": (torch.ops.aten.index_select.default, (x, 0, index)),
        "aten.topk": (torch.ops.aten.topk.default, (x, K)),
        "aten.empty": (torch.ops.aten.empty.memory_format, ([K, D],)),
    }
    with torch.inference_mode():
        return {name: lowest_us(op, *args) for name, (op, args) in ops.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_cost", description=__doc__.splitlines()[0])
    parser.parse_args(argv)
    try:
        rows = measure_cpu()
    except RuntimeError as error:
        print(f"host_cost: {error}", file=sys.stderr)
        return 2
    print(f"host cost of a small call, us (limit {LIMIT_US:g}; lowest of {REPEATS} means of {CALLS} calls)")
    print(f"{'op':22}  {'call':>7}  {'raw kernels':>11}  {'host cost':>9}  {'torch':>7}  {'ours':>7}")
    for row in rows:
        verdict = "" if row["host_us"] <= LIMIT_US else f"  over the limit of {LIMIT_US:g}"
        print(f"{row['op']:22}  {row['call_us']:7.2f}  {row['kernel_us']:11.2f}  {row['host_us']:9.2f}"
              f"  {row['torch_us']:7.2f}  {row['ours_us']:7.2f}{verdict}")
    print("host cost = call - raw kernels = torch (an empty op of the same schema) + ours")
    print("for comparison, whole calls of torch's own ops: "
          + ", ".join(f"{name} {us:.2f}" for name, us in yardsticks_us().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
