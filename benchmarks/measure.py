"""One case at a time: check ours, check each peer, time those that passed, put the counts beside the times."""

import gc
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from vtkernels import _dispatch

from . import peers, timing
from .call import Call
from .case import DTYPE_NAMES, Case
from .data import make
from .verify import Mismatch, check, check_peer

Row = dict[str, Any]
DIMS = ("B", "N", "D", "P", "H", "d", "layers", "F", "Tq", "Hkv", "K", "lengths", "option")
MODES = {"cpu": ("calls",), "cuda": ("graph warm", "graph cold", "eager")}


def ours(case: Case, backend: str) -> peers.Runner:
    """The op as dispatched ("auto"), or one backend of it."""
    packet = getattr(torch.ops.vtkernels, case.op)
    op = packet.default if backend == "auto" else _dispatch.function(case.op, backend)
    return lambda call: op(*call.args, **call.kwargs)


def measure(case: Case, device: str, backends: Sequence[str], peer_names: Sequence[str] | None, seconds: float,
            min_rounds: int = 9, roofline: bool = True) -> list[Row]:
    """A row for every mode and backend. A backend whose check fails gets a row with the reason and no time."""
    call = make(case, device)
    good: dict[str, peers.Runner] = {}
    reference, failed = None, {}
    for backend in backends:
        run = ours(case, backend)
        try:
            outputs = run(call)
            check(case, call, outputs)
        except (Mismatch, RuntimeError) as error:
            failed[backend] = _line(error)
            continue
        good[backend], reference = run, outputs
    rows = [_row(case, call, backend, device, "", check=reason) for backend, reason in failed.items()]
    if not good:
        return rows

    rivals: dict[str, peers.Runner] = {}
    errors = {}
    for name in peers.names(case.op, case.dtype) if peer_names is None else peer_names:
        run = peers.build(case, name)
        try:
            theirs = run(call)
            if name not in peers.FLOORS:
                check_peer(case, call, theirs, reference)
        except Exception as error:  # a peer that cannot run here is a cell of the table, not the end of the run
            errors[name] = _line(error)
            continue
        rivals[name] = run
    theirs = outputs = reference = None

    for mode in MODES[device]:
        clocks, refused = _clocks(mode, case, call, {**good, **rivals})
        lost = {name: why for name, why in refused.items() if name in good}
        rows += [_row(case, call, name, device, mode, check=why) for name, why in lost.items()]
        samples = timing.paired(clocks, seconds, min_rounds) if clocks else {}
        clocks.clear()
        rows += [_timed(_row(case, call, backend, device, mode), samples, backend,
                        {**errors, **{n: w for n, w in refused.items() if n in rivals}}, roofline, device, case)
                 for backend in good if backend in samples]
    del call
    torch.compiler.reset()  # the compiled peers of the next shape start afresh, not at their recompile limit
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return rows


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"[:200]


def _clocks(mode: str, case: Case, call: Call,
            runners: dict[str, peers.Runner]) -> tuple[dict[str, timing.Clock], dict[str, str]]:
    """A clock for each runner, and why some have none (a graph cannot capture them)."""
    total = case.counts().bytes
    copies = timing.cold_copies(total, timing.l2_bytes()) if mode == "graph cold" else 1
    if copies is None:
        return {}, {}  # too small to be out of the L2
    calls = [call, *(call.clone() for _ in range(copies - 1))]
    clocks, refused = {}, {}
    for name, run in runners.items():
        try:
            if mode == "calls":
                clocks[name] = timing.cpu_clock(run, call)
            elif mode == "eager":
                clocks[name] = timing.eager_clock(run, call)
            else:
                clocks[name] = timing.graph_clock(run, calls, max(1, min(50, 2 * 10**9 // total) // len(calls)))
        except Exception as error:
            refused[name] = _line(error)
    return clocks, refused


def _row(case: Case, call: Call, backend: str, device: str, mode: str, check: str = "ok") -> Row:
    dims = {k: v for k, v in asdict(case).items() if k in DIMS and v}
    chosen = _dispatch.choose(device, case.op) if backend == "auto" else backend
    return {"op": case.op, "name": case.name, "shape": case.shape, "dtype": DTYPE_NAMES[case.dtype], "dims": dims,
            "keep": case.keep, "groups": list(case.groups), "data": call.source, "mode": mode, "backend": chosen,
            **case.counts()._asdict(), "check": check}


def _statistics(samples: timing.Samples) -> dict[str, float]:
    return {"median_us": samples.median * 1e6, "p10_us": samples.quantile(0.1) * 1e6,
            "p90_us": samples.quantile(0.9) * 1e6}


def _timed(row: Row, samples: dict[str, timing.Samples], backend: str, errors: dict[str, str], roofline: bool,
           device: str, case: Case) -> Row:
    """Add the times, the ratio to the best peer of this run and the share of the roofline."""
    mine = samples[backend]
    known = peers.names(case.op, case.dtype)
    others = {name: s for name, s in samples.items() if name in known}
    row["ours"] = _statistics(mine)
    row["peers"] = {name: {**_statistics(s), "ratio": mine.ratio_to(s)}
                    for name, s in others.items() if name not in peers.FLOORS}
    row["floors"] = {name: _statistics(s) for name, s in others.items() if name in peers.FLOORS}
    row["errors"] = errors
    row["rounds"] = len(mine.values)
    best = min(row["peers"], key=lambda name: row["peers"][name]["median_us"], default=None)
    row["best_peer"] = best
    row["ratio"] = row["peers"][best]["ratio"] if best else None
    if roofline:
        row["roofline"] = _roofline(case, device, mine.median)
    if case.goal_us is not None and row["mode"] == "graph warm":
        row["goal"] = {"us": case.goal_us, "met": mine.median * 1e6 <= case.goal_us}
    if case.goal_copy_share is not None and row["mode"] == "graph cold" and "copy" in others:
        share = others["copy"].median / mine.median
        row["goal"] = {"copy_share": case.goal_copy_share, "is": share, "met": share >= case.goal_copy_share}
    return row


def _roofline(case: Case, device: str, seconds: float) -> dict[str, Any]:
    """The larger of bytes over the copy rate and operations over the matrix rate, both measured in this run."""
    counts = case.counts()
    by_bytes = counts.bytes / timing.copy_rate(device)
    by_flops = counts.flops / _matrix_rate(device, case.dtype) if counts.flops else 0.0
    floor = max(by_bytes, by_flops)
    bound = "bytes" if by_bytes >= by_flops else "flops"
    return {"floor_us": floor * 1e6, "percent": 100 * floor / seconds, "bound": bound}


def _matrix_rate(device: str, dtype: torch.dtype) -> float:
    """A CPU without low-precision instructions multiplies faster in float32, and a kernel may do that."""
    rate = timing.matrix_rate(device, dtype)
    return max(rate, timing.matrix_rate(device, torch.float32)) if device == "cpu" else rate
