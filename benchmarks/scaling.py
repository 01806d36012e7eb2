"""How `prune_topk` grows with N on the CPU: time per token, and memory beyond inputs and outputs.

Memory is the rise of a child process's peak resident set over one call, less the outputs. The kernel's own scratch and
whatever torch takes are both in it; the full N x P products, which no backend but the reference may store, are printed
beside it.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vtkernels import _dispatch

from .environment import ROOT

SIZES = (1_000, 10_000, 100_000, 300_000, 1_000_000)
D, P, KEEP = 64, 64, 0.2
SECONDS = 1.5


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # 5 sets VmHWM to the present resident set


def _inputs(n: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    generator = torch.Generator().manual_seed(0)
    return (torch.empty(1, n, D).normal_(generator=generator), torch.empty(P, D).normal_(generator=generator),
            round(KEEP * n))


def measure_one(n: int, backend: str) -> dict[str, Any]:
    """Time and memory at one size, in this process: meant for a fresh child."""
    op = torch.ops.vtkernels.prune_topk.default if backend == "auto" else _dispatch.function("prune_topk", backend)
    with torch.inference_mode():
        small = _inputs(256)
        op(*small)  # code, thread pool and their stacks are resident before the count starts
        args = _inputs(n)
        _reset_peak()
        before = _peak_bytes()
        hidden, _, indices, scores = op(*args)
        rise = _peak_bytes() - before
        outputs = sum(t.numel() * t.element_size() for t in (hidden, indices, scores))
        del hidden, indices, scores
        times: list[float] = []
        start = time.perf_counter()
        while len(times) < 3 or (time.perf_counter() - start < SECONDS and len(times) < 200):
            begin = time.perf_counter()
            op(*args)
            times.append(time.perf_counter() - begin)
    seconds = sorted(times)[len(times) // 2]
    return {"N": n, "ms": seconds * 1e3, "ns_per_token": seconds / n * 1e9, "output_bytes": outputs,
            "extra_bytes": rise - outputs, "products_bytes": 4 * n * P}


def measure(sizes: Sequence[int], backend: str) -> list[dict[str, Any]]:
    rows = []
    for n in sizes:
        command = [sys.executable, "-m", "benchmarks.scaling", "--child", str(n), "--backend", backend]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"N = {n}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="comma list of N")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child is not None:
        print(json.dumps(measure_one(options.child, options.backend)))
        return 0
    if not Path("/proc/self/clear_refs").exists():
        print("scaling: the peak memory of a process is read from /proc, which is not here", file=sys.stderr)
        return 2
    rows = measure([int(n) for n in options.sizes.split(",")], options.backend)
    print(f"prune_topk, D {D}, P {P}, keep {KEEP:.0%}, fp32, no caches, {torch.get_num_threads()} threads")
    print(f"{'N':>9}  {'ms':>9}  {'ns/token':>8}  {'outputs':>9}  {'extra':>9}  {'bytes/token':>11}  {'N x P':>9}")
    for r in rows:
        outputs, extra, products = (r[f"{name}_bytes"] / 1e6 for name in ("output", "extra", "products"))
        print(f"{r['N']:9}  {r['ms']:9.3f}  {r['ns_per_token']:8.1f}  {outputs:6.2f} MB  {extra:6.2f} MB  "
              f"{r['extra_bytes'] / r['N']:11.1f}  {products:6.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
