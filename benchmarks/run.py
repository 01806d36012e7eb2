"""The command line of the suite: `python -m vtkernels bench`, or `python -m benchmarks.run`."""

import argparse
import csv
import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from vtkernels import _dispatch, _env

from . import environment, peers, registry
from .measure import MODES, Row, measure
from .session import SAME, UNFINISHED, tree

CSV_COLUMNS = ("op", "name", "dtype", "mode", "backend", "implementation", "median_us", "p10_us", "p90_us",
               "ratio_to_ours", "bytes", "flops", "roofline_percent", "check")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m vtkernels bench", description="Time ops beside peers, checks first.")
    p.add_argument("--op", default="", help=f"comma list of {', '.join(registry.COUNTS)}; all when absent")
    p.add_argument("--shape", default="", help="comma list of shape names or patterns, such as '576x*'; see --list")
    p.add_argument("--group", default="", help="shapes to run when --shape is absent: cpu, gpu, ten or quick")
    p.add_argument("--peers", default="", help="comma list of peers or patterns, 'none' for none; all when absent")
    p.add_argument("--backend", default="", help=f"comma list of auto, {', '.join(_env.BACKENDS)}")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--threads", type=int, help="threads of torch, ours included")
    p.add_argument("--seconds", type=float, default=3.0, help="time spent on each table cell's rounds")
    p.add_argument("--budget", type=float, default=math.inf, help="seconds after which no further shape is started")
    p.add_argument("--quick", action="store_true", help="tiny shapes, eager peers, a few rounds: a trial of the suite")
    p.add_argument("--csv", type=Path, help="write every implementation's time here")
    p.add_argument("--json", type=Path, help="write the rows with device, versions, commit and command here")
    p.add_argument("--plot", type=Path, help="write a chart (needs matplotlib)")
    p.add_argument("--save", nargs="?", type=Path, const=environment.RESULTS, metavar="DIR",
                   help="write DIR/<device>/<op>.json; DIR is benchmarks/results when absent")
    p.add_argument("--no-compiled", action="store_true", help="leave out the peers that torch compiles")
    p.add_argument("--resume", action="store_true", help="with --save: keep what was measured there on the same "
                   "sources, device and versions, and end with 75 where the budget leaves shapes over")
    p.add_argument("--commit", help="commit to record where there is no git")
    p.add_argument("--list", action="store_true", help="print the shapes with their counts and end")
    return p


def _words(text: str) -> list[str]:
    return [w.strip() for w in text.split(",") if w.strip()]


def _backends(text: str, device: str) -> list[str]:
    wanted = _words(text)
    if not wanted:
        native = [b for b in ("triton", "cuda") if _dispatch.refusal(b, device) is None] if device == "cuda" else []
        return native or ["auto"]
    for name in wanted:
        if name not in ("auto", *_env.BACKENDS):
            raise ValueError(f"--backend is {name!r}, allowed: auto, {', '.join(_env.BACKENDS)}")
        reason = None if name == "auto" else _dispatch.refusal(name, device)
        if reason is None and name == "cpu" and _env.BACKEND not in ("auto", "cpu"):
            reason = f"VTKERNELS_BACKEND={_env.BACKEND}"
        if reason:
            raise ValueError(f"--backend {name} cannot run here: {reason}")
    return wanted


def _peer_names(text: str, case: registry.Case, compiled: bool) -> list[str]:
    known = peers.names(case.op, case.dtype)
    patterns = _words(text)
    if not patterns:
        return [n for n in known if compiled or not n.startswith(peers.COMPILED)]
    if patterns == ["none"]:
        return []
    return [n for n in known if any(fnmatch(n, p) for p in patterns)]


def _milliseconds(us: float) -> str:
    return f"{us / 1e3:.4f}" if us < 1e3 else f"{us / 1e3:.2f}"


def table_header(op: str) -> str:
    names = peers.names(op, torch.bfloat16)
    return "  ".join([f"{'shape':32}", f"{'mode':10}", f"{'backend':9}", f"{'ours ms':>9}",
                      *(f"{n:>{max(9, len(n))}}" for n in names), f"{'best/ours':>9}", f"{'roofline':>8}"])


def table_line(row: Row) -> str:
    start = f"{row['name']:32}  {row['mode']:10}  {row['backend']:9}  "
    if row["check"] != "ok":
        return f"{start}no speed: {row['check']}"
    cells = [f"{_milliseconds(row['ours']['median_us']):>9}"]
    for name in peers.names(row["op"], torch.bfloat16):
        entry = row["peers"].get(name) or row["floors"].get(name)
        text = _milliseconds(entry["median_us"]) if entry else "refused" if name in row["errors"] else "-"
        cells.append(f"{text:>{max(9, len(name))}}")
    cells.append(f"{row['ratio']:>8.2f}x" if row["ratio"] else f"{'-':>9}")
    cells.append(f"{row['roofline']['percent']:>7.0f}%" if "roofline" in row else f"{'-':>8}")
    return start + "  ".join(cells)


def goal_line(row: Row) -> str:
    goal, verdict = row["goal"], "met" if row["goal"]["met"] else "NOT met"
    if "us" in goal:
        return f"goal {verdict}: {row['op']} {row['name']} on {row['backend']}: at most {goal['us']:g} us, " \
               f"is {row['ours']['median_us']:.1f} us ({row['mode']})"
    return f"goal {verdict}: {row['op']} {row['name']} on {row['backend']}: at least {goal['copy_share']:.0%} of the " \
           f"copy speed, is {goal['is']:.0%} ({row['mode']})"


def summary(rows: Sequence[Row], device: str) -> str:
    """Geometric mean of best peer / ours over the ten cells of `prune_topk`."""
    first: dict[str, Row] = {}  # of several backends, the one that is dispatched
    for r in rows:
        if r["op"] == "prune_topk" and "ten" in r["groups"] and r.get("ratio") and r["mode"] == MODES[device][0]:
            first.setdefault(r["name"], r)
    ten = list(first.values())
    if not ten:
        return "prune_topk, ten cells: not measured"
    ratios = [r["ratio"] for r in ten]
    wide = [r["ratio"] for r in ten if r["dtype"] == "fp32" and r["shape"] != "576x1024-P64"]
    slow = ", ".join(r["name"] for r in ten if r["ratio"] < 0.95) or "none"
    lowest = f"lowest fp32 but the first {min(wide):.2f}x, " if wide else ""
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return f"prune_topk, {len(ten)} of the ten cells, best peer / ours: slower than 0.95x: {slow}; {lowest}" \
           f"geometric mean {mean:.2f}x"


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, CSV_COLUMNS)
        out.writeheader()
        for row in rows:
            shared = {c: row[c] for c in CSV_COLUMNS if c in row}
            if row["check"] != "ok":
                out.writerow({**shared, "implementation": "ours"})
                continue
            percent = row.get("roofline", {}).get("percent")
            out.writerow({**shared, "implementation": "ours", **row["ours"], "roofline_percent": percent})
            for name, entry in {**row["peers"], **row["floors"]}.items():
                times = {k: v for k, v in entry.items() if k != "ratio"}
                out.writerow({**shared, "implementation": name, **times, "ratio_to_ours": entry.get("ratio")})


def _write_json(path: Path, facts: dict[str, Any], rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "rows": list(rows)}, indent=1) + "\n")


def _measured(folder: Path, facts: dict[str, Any]) -> list[Row]:
    """Rows of an earlier run on the same sources, device and versions."""
    rows: list[Row] = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if all(content.get(name) == facts[name] for name in SAME):
            rows += content.get("rows", [])
    return rows


def _complete(found: Sequence[Row], backends: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a shape was measured on every backend and beside every one of these peers."""
    return {r["backend"] for r in found} >= set(backends) and all(
        r["check"] == "ok" and {*r["peers"], *r["floors"], *r["errors"]} >= set(names) for r in found)


def _save(folder: Path, facts: dict[str, Any], rows: Sequence[Row]) -> None:
    for name in dict.fromkeys(r["op"] for r in rows):
        _write_json(folder / f"{name}.json", facts, [r for r in rows if r["op"] == name])


def _list(cases: Sequence[registry.Case]) -> None:
    for c in cases:
        counts = c.counts()
        groups = ", ".join(c.groups)
        print(f"{c.op:18} {c.name:36} {counts.bytes / 1e6:9.2f} MB {counts.flops / 1e9:9.3f} GFLOP  {groups}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite. Returns 0, 1 when a check of ours failed, 2 for arguments that cannot be met, 75 where
    --resume finds no time for all shapes."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(argv)
    group = options.group or ("quick" if options.quick else "gpu" if options.device == "cuda" else "cpu")
    try:
        if options.list:
            _list(registry.CASES)
            return 0
        cases = registry.select(_words(options.op), _words(options.shape), group)
        backends = _backends(options.backend, options.device)
        if not cases:
            raise ValueError(f"no shape of these ops is in the group {group!r}")
        if options.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: torch sees no CUDA device")
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if options.device == "cpu":
        environment.cap_instruction_set()
    if options.threads:
        torch.set_num_threads(options.threads)

    command = shlex.join(["python", "-m", "vtkernels", "bench", *(Path(a).name if a[:1] == "/" else a for a in argv)])
    facts = environment.describe(options.device, command, options.commit)
    if options.resume:
        facts["tree"] = tree()
    print(environment.header(facts))
    folder = options.save / facts["device_slug"] if options.save else None
    earlier = _measured(folder, facts) if options.resume and folder else []
    rows: list[Row] = []
    left = 0
    start, op = time.monotonic(), ""
    seconds, rounds = (0.02, 3) if options.quick else (options.seconds, 9)
    for case in cases:
        if case.op != op:
            op = case.op
            print(f"\n{op}: ms, median of paired rounds\n{table_header(op)}")
        names = _peer_names(options.peers, case, not (options.quick or options.no_compiled))
        usable = [b for b in backends if b == "auto" or _dispatch.refusal(b, options.device, case.op) is None]
        before = [r for r in earlier if (r["op"], r["name"]) == (case.op, case.name)]
        running = [_dispatch.choose(options.device, case.op) if b == "auto" else b for b in usable]
        if before and _complete(before, running, names):
            print(f"{case.name:32}  measured before")
            rows += before
            continue
        if time.monotonic() - start > options.budget:
            print(f"{case.name:32}  not measured: the budget of {options.budget:g} s is spent")
            rows, left = rows + before, left + 1
            continue
        with torch.inference_mode():
            found = measure(case, options.device, usable, names, seconds, rounds, roofline=not options.quick)
        for row in found:
            print(table_line(row), flush=True)
        for name, why in {n: w for r in found for n, w in r.get("errors", {}).items()}.items():
            print(f"  {name} refused: {why}")
        rows += found
        if folder:
            _save(folder, facts, [*rows, *(r for r in earlier if all(
                (r["op"], r["name"]) != (done["op"], done["name"]) for done in rows))])

    if options.csv:
        _write_csv(options.csv, rows)
    if options.json:
        _write_json(options.json, facts, rows)
    if options.plot:
        from .plots import plot
        plot(rows, facts, options.plot)
    print(f"\ndata: {'; '.join(dict.fromkeys(r['data'] for r in rows))}")
    for row in rows:
        if "goal" in row:
            print(goal_line(row))
    failed = [r for r in rows if r["check"] != "ok"]
    if failed:
        print(f"{len(failed)} checks failed")
    print(summary(rows, options.device))
    if left and options.resume:
        print(f"{left} of {len(cases)} shapes are left")
    return 1 if failed else UNFINISHED if left and options.resume else 0


if __name__ == "__main__":
    sys.exit(main())
