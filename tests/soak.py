"""`python -m tests.soak [--threads 32] [--seconds 300] [--plant] [--record]`: do many threads give the bytes of one?

Every op of the CPU kernels, on samples of different shapes, functional and into buffers: first in one thread, then in
many at once, each drawing its calls from all of them. Every output, every argument changed in place and every status
word must have the bytes that it had alone. With --plant a library whose threads share their scratch memory is built and
run first, and has to be found.
"""

import argparse
import hashlib
import inspect
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtkernels import _library, testing

from .reliability import record
from .sanitize.__main__ import make_tree, replace
from .sanitize.build import ROOT, compile_objects, cpu_sources, link

CHANGED = {"gather_kv_inplace": "kv", "compact_kv_paged": "kv", "prune_topk_paged": "kv"}
# Room for every call, so that the shared memory stays where it is and only its contents are wrong.
SHARED = ("csrc/cpu/common/isa.cpp", "  thread_local Buffer buffer;\n",
          "  static Buffer buffer;\n  if (floats < (int64_t{1} << 24)) floats = int64_t{1} << 24;\n")
Run = Callable[..., Any]


class Job(NamedTuple):
    """A call of an op, functional or into buffers."""

    op: str
    sample: testing.Sample
    out: bool

    def __str__(self) -> str:
        return f"{self.op}{'.out' * self.out} {self.sample.name}"


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors(v)


def buffers(spec: Any) -> Any:
    if isinstance(spec, _library.Spec):
        return torch.empty(spec.shape, dtype=spec.dtype)
    return type(spec)(buffers(s) for s in spec)


def digest(job: Job, run: Run = testing.run) -> str:
    """Of all that the call gives back: outputs, arguments that it changed, the status word."""
    op, (_, args, kwargs), _ = job
    place = list(inspect.signature(_library.CONTRACTS[op]).parameters).index("kv") if op in CHANGED else -1
    args = tuple([testing.copied(t) for t in arg] if i == place else arg for i, arg in enumerate(args))
    results: list[Any] = [args[place]] if place >= 0 else []
    if job.out:
        names, specs = _library.OUT_ARGS[op], _library.CONTRACTS[op](*args, **kwargs)
        outs = buffers(specs if len(names) > 1 else (specs,)[:len(names)])
        status = {"status": torch.zeros(1, dtype=torch.int32)} if op in _library.STATUS else {}
        run(f"{op}.out", "cpu", *args, **kwargs, **dict(zip(names, outs, strict=True)), **status)
        results += [*outs, *status.values()]
    else:
        results.append(run(op, "cpu", *args, **kwargs))
    sha = hashlib.sha256()
    for t in tensors(results):
        sha.update(testing.bytes_of(t).tobytes())
    return sha.hexdigest()


def large() -> Iterator[tuple[str, testing.Sample]]:
    """Calls long enough to be interrupted, and to be shared among the threads of torch."""
    for dtype in (torch.float32, torch.bfloat16):
        x, protos = testing.clustered(3 * 700, 256, dtype=dtype).view(3, 700, 256), testing.rand(45, 256, dtype=dtype)
        kv = testing.rand(3, 4, 700, 64, dtype=dtype)
        keep = torch.arange(0, 700, 3).repeat(3, 1)
        for op, args, kwargs in (
                ("prototype_scores", (x, protos), {}), ("prototype_topm", (x, protos, 4), {}),
                ("attention_scores", (kv[:, :, :50], kv), {}), ("select_topk", (x[..., 0].float(), 300), {}),
                ("select_diverse", (x, 40), {}), ("match_bipartite", (x, 200), {}),
                ("cluster_kmeans", (x, 20), {"iterations": 2}), ("gather_tokens", ([x], keep), {}),
                ("gather_kv", ([kv, kv], keep), {}), ("merge_tokens", (x, keep.repeat(1, 3)[:, :700] % 60, 60), {}),
                ("rotate_keys", (kv, torch.arange(700).repeat(3, 1), torch.rand(32)), {}),
                ("argmax_attention", (kv[:, :, :50], kv), {}), ("prune_topk", (x, protos, 200, [kv]), {})):
            yield op, testing.Sample(f"large-{dtype}", args, kwargs)


def jobs(per_op: int) -> list[Job]:
    """Some samples of each op, spread over all of its shapes and dtypes, and the large calls."""
    chosen = list(large())
    for op, samples in testing.SAMPLES.items():
        every = list(samples())
        chosen += [(op, every[i * len(every) // per_op]) for i in range(min(per_op, len(every)))]
    return [Job(op, sample, out) for op, sample in chosen for out in (False, True) if out or _library.OUT_ARGS[op]]


def soak(todo: list[Job], threads: int, seconds: float, run: Run = testing.run,
         expected: list[str] | None = None) -> tuple[int, list[str]]:
    """Calls made by all threads, and what differed; ends early when something does."""
    want = expected or [digest(job) for job in todo]
    deadline = time.monotonic() + seconds
    found: list[str] = []
    counts = [0] * threads

    def work(number: int) -> None:
        pick = random.Random(number)
        try:
            while time.monotonic() < deadline and not found:
                i = pick.randrange(len(todo))
                if digest(todo[i], run) != want[i]:
                    found.append(f"{todo[i]} differs in thread {number}")
                counts[number] += 1
        except Exception as error:
            found.append(f"thread {number}: {type(error).__name__}: {error}")

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts), found


def plant(scratch: Path, threads: int) -> None:
    """A library whose threads share their scratch memory must be found."""
    tree, changed, sources = make_tree(scratch), scratch / "changed", cpu_sources(ROOT)
    objects = dict(zip(sources, compile_objects(ROOT, sources, scratch / "objects", ("-O1",)), strict=True))
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", changed / "csrc")
    replace(changed / SHARED[0], *SHARED[1:], keep_time=False)
    (objects[SHARED[0]],) = compile_objects(changed, [SHARED[0]], scratch / "planted", ("-O1",))
    link(list(objects.values()), tree / "vtkernels/_C_cpu.so")
    done = subprocess.run([sys.executable, "-m", "tests.soak", "--threads", str(threads), "--seconds", "120"], cwd=tree,
                          env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True)
    if done.returncode != 1 or " differs in thread " not in done.stdout:
        raise SystemExit(f"soak: shared scratch memory was not found (exit {done.returncode})\n"
                         f"{done.stdout[-3000:]}{done.stderr[-3000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--samples", type=int, default=12, help="of each op")
    parser.add_argument("--plant", action="store_true", help="first run a library with a defect, which must be found")
    parser.add_argument("--scratch", type=Path, default=ROOT / "build/soak")
    parser.add_argument("--record", action="store_true", help="put the figure into docs/reliability.json")
    options = parser.parse_args()
    sys.setswitchinterval(1e-4)
    torch.use_deterministic_algorithms(True)  # what is allocated and not written is NaN or the largest integer
    if options.plant:
        plant(options.scratch, options.threads)
        print("planted: scratch memory that all threads share: found", flush=True)
    todo = jobs(options.samples)
    calls, found = soak(todo, options.threads, options.seconds)
    print("\n".join(found[:10]))
    figure = (f"{options.threads} threads, {options.seconds:.0f} s: {calls} calls of {len(testing.SAMPLES)} ops "
              f"({len(todo)} different ones), {len(found)} other than in one thread"
              + "; the planted defect was found" * options.plant)
    print(figure)
    if options.record:
        record("soak", figure, f"python -m tests.soak {' '.join(sys.argv[1:])}")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main())
