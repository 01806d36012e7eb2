"""Clocks. Competitors take turns in one run, so that whatever slows the machine slows all of them.

CPU: the wall time of single calls. GPU: replay of a CUDA graph, over the same buffers (warm L2) or over rotating
copies that are together larger than the L2 (cold), and plain eager calls, host time included.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .data import Call
from .peers import Runner

Clock = Callable[[], float]  # runs once, returns seconds
EAGER_CALLS = 20
L2_MULTIPLE = 3
MAX_COPIES = 64


@dataclass(frozen=True)
class Samples:
    """Seconds per round."""

    values: tuple[float, ...]

    def quantile(self, q: float) -> float:
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def ratio_to(self, other: "Samples") -> float:
        """Median over the rounds of other / self: how many times faster self is."""
        return statistics.median(o / s for s, o in zip(self.values, other.values, strict=True))


def paired(clocks: dict[str, Clock], seconds: float, min_rounds: int = 9, max_rounds: int = 500) -> dict[str, Samples]:
    """Every clock once per round, in an order that turns, until the time is spent."""
    order = list(clocks)
    rounds: list[dict[str, float]] = []
    start = time.perf_counter()
    while len(rounds) < min_rounds or (len(rounds) < max_rounds and time.perf_counter() - start < seconds):
        rounds.append({name: clocks[name]() for name in order})
        order = order[1:] + order[:1]
    return {name: Samples(tuple(r[name] for r in rounds)) for name in clocks}


def cpu_clock(run: Runner, call: Call, warmup: int = 3) -> Clock:
    for _ in range(warmup):
        run(call)

    def clock() -> float:
        start = time.perf_counter()
        run(call)
        return time.perf_counter() - start

    return clock


def cold_copies(call_bytes: int, l2_bytes: int) -> int | None:
    """How many copies of a call are together larger than the L2 by far; None where that takes too many."""
    copies = max(2, -(-L2_MULTIPLE * l2_bytes // max(1, call_bytes)))
    return copies if copies <= MAX_COPIES else None


def l2_bytes() -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size


def graph_clock(run: Runner, calls: list[Call], repeats: int = 1) -> Clock:
    """Replay of a graph that holds `repeats` passes over the calls; seconds per call by device events."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            for call in calls:
                run(call)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                run(call)
    graph.replay()
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def clock() -> float:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / (repeats * len(calls))

    return clock


def eager_clock(run: Runner, call: Call) -> Clock:
    """Calls one after the other without a graph, the host's share included."""
    for _ in range(3):
        run(call)

    def clock() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(EAGER_CALLS):
            run(call)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / EAGER_CALLS

    return clock


def _median_seconds(run: Callable[[], Any], device: str, repeats: int = 7) -> float:
    times = []
    for _ in range(repeats + 2):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


@cache
def copy_rate(device: str) -> float:
    """Bytes read plus bytes written per second of a large copy, far past every cache."""
    size = 2**31 if device == "cuda" else 2**28
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(lambda: target.copy_(source), device)


@cache
def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product through torch, on random data."""
    n = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / _median_seconds(lambda: a @ b, device, 5)
