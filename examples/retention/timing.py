"""Prefill times: from a batch of pictures to the first word of each answer, all rows of the table in turn."""

import os
import time
from collections.abc import Callable
from datetime import datetime, timezone
from statistics import median
from typing import Any

import torch

from benchmarks.environment import commit, cpu_model

from .evaluate import Bench, Job, jobs
from .model import Model
from .pruning import look

BATCH, ROUNDS = 16, 7
QUIET = 0.95  # share of the wall time that the process must have had its core


def once(bench: Bench, job: Job, method: Any) -> float:
    """Seconds of one batch."""
    start = time.perf_counter()
    if job.entry is None or not job.entry.layers:
        bench.seen = look(bench.model, bench.scenes.pixels)
    bench.prompt(job, method)
    return time.perf_counter() - start


@torch.no_grad()
def measure(model: Model, rounds: int = ROUNDS, progress: Callable[[str], None] = print) -> dict[str, Any]:
    """Milliseconds per prompt of each job, by its key; position policies cost the same and are timed once."""
    bench = Bench(model, 0, BATCH, ("framed",))
    first: dict[tuple[Any, Any], Job] = {}
    for job in jobs():
        first.setdefault((job.entry, job.keep), job)
    timed = [(job, method) for job in first.values()
             if (method := bench.method(job)) is not None or job.entry is None]
    seconds: dict[str, list[float]] = {job.key: [] for job, _ in timed}
    load = os.getloadavg()[0]
    wall, cpu = time.perf_counter(), time.process_time()
    for i in range(rounds + 1):
        for job, method in timed:
            taken = once(bench, job, method)
            if i > 0:  # the first round warms up
                seconds[job.key].append(taken)
        progress(f"time: round {i} of {rounds}")
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    return {"machine": f"{cpu_model()}, {torch.get_num_threads()} thread", "commit": commit(), "load": round(load, 2),
            "core_share": round(share, 3), "quiet": share >= QUIET, "batch": BATCH, "rounds": rounds,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "ms": {key: round(1e3 * median(values) / BATCH, 4) for key, values in seconds.items()}}
