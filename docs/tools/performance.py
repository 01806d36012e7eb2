"""The figures of docs/performance.md, all of them from the files in benchmarks/results."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.registry import CASES

from . import DOCS, IMAGES, ROOT, digest, replace, short, table

RESULTS = ROOT / "benchmarks" / "results"
PAGE = DOCS / "performance.md"
PICTURE = IMAGES / "performance.png"
LEVEL = 1.1  # less than that is no lead: the ratios vary by some tenths from run to run

Row = dict[str, Any]

# What a row that is not ahead owes to the reader, where its floor does not say it.
WHY = {
    ("attention_scores", "Tq1-576-H32/32-fp32"):
        "The kernel lays query rows into the lanes of a vector, and one row for each head leaves 15 of 16 lanes empty. "
        "The matrix that the op avoids is one row long here, so storing it costs the peer nothing.",
    ("gather_kv", "4-layers-4x576-H8-fp32"):
        "Level with it: the difference is within what ratios vary here.",
    ("methods", "holitom_outer"):
        "Its largest part is `prototype_topm`, the nearest neighbours among all tokens of a segment, products that "
        "torch computes as well.",
    ("methods", "flash_pooling"):
        "Two matrix products on both sides; ours asks `scaled_dot_product_attention` for them, so that gradients pass.",
    ("methods", "token_shuffle"): "Linear layers of the model, the same on both sides, are nearly all of it.",
    ("methods", "quota"):
        "Four tokens are gathered for each new one and then interpolated, in passes over memory, because sizes are "
        "known on the device only; the loop waits for the sizes and resizes each frame in one pass.",
}


def files() -> dict[str, list[dict[str, Any]]]:
    """Result files with rows of ops, by folder."""
    out: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("*/*.json")):
        data = json.loads(path.read_text())
        if isinstance(data, dict) and data.get("rows") and "ours" in data["rows"][0]:
            out.setdefault(path.parent.name, []).append(data)
    return out


def is_gpu(data: dict[str, Any]) -> bool:
    return any(row["backend"] in ("triton", "cuda") for row in data["rows"])


def machines(gpu: bool) -> list[str]:
    """Folders of one kind, the one measured last at the front."""
    found = {name: max(d["date"] for d in held) for name, held in files().items() if is_gpu(held[0]) == gpu}
    return sorted(found, key=lambda name: found[name], reverse=True)


def rows_of(folder: str) -> list[Row]:
    """Rows with a time, the flagship first, then by name."""
    found = [row for data in files()[folder] for row in data["rows"] if row["check"] == "ok"]
    return sorted(found, key=lambda r: (r["op"] != "prune_topk", r["op"]))


def ms(us: float) -> str:
    return f"{us / 1e3:.3f}" if us < 1e3 else f"{us / 1e3:.2f}"


def least(row: Row) -> tuple[str, float] | None:
    """The slower of torch's own copy of the same bytes and torch's own product, where they were measured."""
    found = {name: entry["median_us"] for name, entry in row["floors"].items()}
    if not found:
        return None
    name = max(found, key=lambda n: found[n])
    return name, found[name]


def environment(folder: str) -> str:
    data = files()[folder][0]
    isa = "AMX not allowed, " if data.get("onednn_max_cpu_isa") else ""
    commits = sorted({short(d["commit"]) for d in files()[folder]})
    return (f"{data['device']} ({data['cpu_capability']}, {isa}{data['threads']} threads), torch {data['torch']}, "
            f"{max(d['date'] for d in files()[folder])[:10]}, commit {', '.join(commits)}, "
            f"[`benchmarks/results/{folder}`](../benchmarks/results/{folder}/prune_topk.json)")


def ops_table(folder: str, others: Iterable[str]) -> str:
    elsewhere = {name: {(r["op"], r["name"]): r for r in rows_of(name)} for name in others}
    ratios = (f"ratio, machine {i}" for i in range(2, 2 + len(elsewhere)))
    head = ("op", "shape", "ours, ms", "best peer, ms", "ratio", *ratios, "to compare, ms")
    lines = []
    for r in rows_of(folder):
        there = [held.get((r["op"], r["name"])) for held in elsewhere.values()]
        part = least(r)
        lines.append((f"`{r['op']}`", r["name"], ms(r["ours"]["median_us"]),
                      f"{ms(r['peers'][r['best_peer']]['median_us'])} ({r['best_peer']})", f"{r['ratio']:.2f}",
                      *(f"{t['ratio']:.2f}" if t else "–" for t in there),
                      f"{ms(part[1])} ({part[0]})" if part else "–"))
    return table(head, lines)


def behind(folder: str) -> str:
    """Every row without a lead, and why."""
    lines = [(f"`{r['op']}`", r["name"], f"{r['ratio']:.2f}", reason(r)) for r in rows_of(folder) if r["ratio"] < LEVEL]
    return table(("op", "shape", "ratio", "why"), lines)


def reason(row: Row) -> str:
    if (row["op"], row["name"]) in WHY:
        return WHY[row["op"], row["name"]]
    part, ours = least(row), row["ours"]["median_us"]
    if part is None or part[1] < 0.6 * ours:
        raise ValueError(f"performance: {row['op']} {row['name']} has the ratio {row['ratio']:.2f} and no reason, "
                         "allowed: an entry in WHY of docs/tools/performance.py")
    name = {"copy": "a plain copy of as many bytes", "matmul": "torch's matrix product alone"}[part[0]]
    if part[1] > 0.95 * ours:
        return f"It takes no longer than {name} ({ms(part[1])} ms)."
    best = row["peers"][row["best_peer"]]["median_us"] / part[1]
    return (f"{name[0].upper()}{name[1:]} takes {ms(part[1])} of its {ms(ours)} ms: the ratio could be {best:.2f} at "
            "most.")


def methods_summary(data: dict[str, Any], machine: int) -> str:
    rows = [r for r in data["rows"] if r["check"] == "ok"]
    ahead = [r for r in rows if r["ratio"] >= LEVEL]
    median = sorted(r["ratio"] for r in rows)[len(rows) // 2]
    lines = [(f"`{r['method']}`", r["shape"], f"{r['ratio']:.2f}", method_reason(r))
             for r in sorted(rows, key=lambda r: r["ratio"]) if r["ratio"] < LEVEL]
    return "\n\n".join([
        f"{len(ahead)} of {len(rows)} methods are at least {LEVEL} times as fast as their loop, the median is "
        f"{median:.1f}, the most {max(r['ratio'] for r in rows):.0f} "
        f"(machine {machine}; [all of them](methods.md#times-beside-the-usual-loops)). Without a lead:",
        table(("method", "shape", "loop / ours", "why"), lines)])


def method_reason(row: Row) -> str:
    if ("methods", row["method"]) in WHY:
        return WHY["methods", row["method"]]
    if row["ratio"] < 0.9:
        raise ValueError(f"performance: the method {row['method']} has the ratio {row['ratio']:.2f} and no reason, "
                         "allowed: an entry in WHY of docs/tools/performance.py")
    return "Level with it: the difference is within what ratios vary here."


def gpu_table() -> str:
    """Measured rows of each GPU, or the shapes that wait for one."""
    found = machines(True)
    if found:
        parts = []
        for folder in found:
            lines = [(f"`{r['op']}`", r["name"], r["mode"], r["backend"], ms(r["ours"]["median_us"]),
                      f"{ms(r['peers'][r['best_peer']]['median_us'])} ({r['best_peer']})", f"{r['ratio']:.2f}")
                     for r in rows_of(folder)]
            head = ("op", "shape", "mode", "backend", "ours, ms", "best peer, ms", "ratio")
            parts += [environment(folder), table(head, lines)]
        return "\n\n".join(parts)
    counts: dict[str, list[str]] = {}
    for case in CASES:
        if "gpu" in case.groups:
            counts.setdefault(case.op, []).append(case.name)
    return table(("op", "shapes of `make gpu`", "state"),
                 [(f"`{op}`", ", ".join(names), "not measured") for op, names in counts.items()])


def picture_data() -> list[list[Any]]:
    return [[r["op"], r["name"], round(r["ratio"], 4), r["best_peer"]] for r in rows_of(machines(False)[0])]


def draw(path: Path = PICTURE) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = picture_data()
    figure = Figure(figsize=(9, 0.27 * len(rows) + 1), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    ratios = [r[2] for r in rows]
    axis.barh(range(len(rows)), [math.log2(r) for r in ratios],
              color=["#3f51b5" if r >= LEVEL else "#9e9e9e" if r >= 1 else "#c62828" for r in ratios])
    for i, ratio in enumerate(ratios):
        at = math.log2(ratio)
        axis.text(at + (0.06 if at >= 0 else -0.06), i, f"{ratio:.2f}", va="center", fontsize=8,
                  ha="left" if at >= 0 else "right")
    axis.set_yticks(range(len(rows)), [f"{op}  {name}" for op, name, *_ in rows], fontsize=8)
    axis.invert_yaxis()
    ticks = range(math.floor(math.log2(min(ratios))), math.ceil(math.log2(max(ratios))) + 1)
    axis.set_xticks(ticks, [f"{2.0**t:g}" for t in ticks])
    axis.set_xlim(ticks[0] - 0.2, ticks[-1] + 0.5)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("time of the best peer / ours (log scale); red: the peer is faster, grey: no clear lead")
    figure.savefig(path, dpi=110, metadata={"Description": digest(rows)})


def page(text: str) -> str:
    first, *others = machines(False)
    folders = [first, *others]
    measured = next(i for i, folder in enumerate(folders) if (RESULTS / folder / "methods.json").is_file())
    methods = methods_summary(json.loads((RESULTS / folders[measured] / "methods.json").read_text()), measured + 1)
    named = "\n".join(f"{i}. {environment(folder)}" for i, folder in enumerate(folders, 1))
    for name, body in {"machines": named, "ops": ops_table(first, others), "behind": behind(first),
                       "methods": methods, "gpu": gpu_table()}.items():
        text = replace(text, name, body)
    return text


def write() -> None:
    PAGE.write_text(page(PAGE.read_text()))
    draw()
