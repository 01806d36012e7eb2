"""The results as Markdown and pictures: `results/table.md` and the generated parts of `docs/retention.md`."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .results import COLUMNS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "retention.md"
IMAGES = ROOT / "docs" / "images" / "retention"
WHERE = {"outer": "Before the decoder (outer)", "inner": "Between decoder layers (inner)",
         "cache": "In the caches, after the prompt"}
ORDERED_BY = 0.25  # methods stand in the order of their mean accuracy at this share
MARKS = {0.5: ("o", "C0"), 0.25: ("s", "C2"), 0.11: ("D", "C1"), 0.05: ("^", "C3"), None: ("*", "0.3")}

Row = dict[str, Any]


def lines(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def percent(band: dict[str, Any]) -> str:
    half = (band["high"] - band["low"]) / 2
    return f"{100 * band['mean']:.1f} ± {100 * half:.1f}"


def mean_of(row: Row) -> float:
    return row["accuracy"]["mean"]["mean"]


def ordered(data: dict[str, Any], where: str) -> list[str]:
    """The methods of a place, the best first."""
    best: dict[str, float] = {}
    for row in data["rows"]:
        if row["where"] == where and row["keep"] in (ORDERED_BY, None):
            best[row["method"]] = max(best.get(row["method"], 0.0), mean_of(row))
    return sorted(best, key=lambda name: (-best[name], name))


def rows_of(data: dict[str, Any], where: str, method: str) -> list[Row]:
    return [row for row in data["rows"] if (row["where"], row["method"]) == (where, method)]


def costs(row: Row, full: Row) -> list[str]:
    return [f"{row['prefill_ms']:.2f}", f"{row['prefill_ms'] / full['prefill_ms']:.2f}", f"{row['kv_bytes'] / 1e3:.1f}"]


def full_table(data: dict[str, Any]) -> str:
    """Every row: accuracy in percent with the half width of its band."""
    full = data["full"]
    head = ["method", "positions", "keep", "tokens", *COLUMNS, "prefill, ms", "of unpruned", "K and V, kB"]
    cells = [["unpruned", "", "100 %", f"{full['kept']:g}", *(percent(full["accuracy"][c]) for c in COLUMNS),
              *costs(full, full)]]
    cells.append(["chance", "", "", "", *(f"{100 * data['chance'][c]:.0f}" for c in data["tasks"]), "", "", "", ""])
    parts = [lines(head, cells)]
    for where, title in WHERE.items():
        cells = [[f"`{row['method']}`", row["policy"], "own" if row["keep"] is None else f"{row['keep']:.0%}",
                  f"{row['kept']:g}", *(percent(row["accuracy"][c]) for c in COLUMNS), *costs(row, full)]
                 for name in ordered(data, where) for row in rows_of(data, where, name)]
        parts.append(f"## {title}\n\n{lines(head, cells)}")
    return "\n\n".join(parts)


def short_table(data: dict[str, Any]) -> str:
    """A row per method: the mean of all tasks by share, and what a quarter costs; positions preserved."""
    full, keeps = data["full"], data["keep"]
    head = ["method", *(f"{keep:.0%}" for keep in keeps), "prefill, ms", "of unpruned", "K and V, kB", "remark"]
    parts = [f"Unpruned: {percent(full['accuracy']['mean'])} % (" + ", ".join(
        f"{task} {100 * full['accuracy'][task]['mean']:.1f}" for task in data["tasks"]) +
        f"), prefill {full['prefill_ms']:.2f} ms, K and V {full['kv_bytes'] / 1e3:.1f} kB."]
    for where, title in WHERE.items():
        cells = []
        for name in ordered(data, where):
            rows = rows_of(data, where, name)
            by_keep = {row["keep"]: row for row in rows if row["policy"] == rows[0]["policy"]}
            shown = by_keep.get(ORDERED_BY) or by_keep[None]
            remark = shown["note"]
            if shown["keep"] is None:
                remark = f"{remark}: {shown['kept']:.1f} tokens, {percent(shown['accuracy']['mean'])}"
            means = [percent(by_keep[k]["accuracy"]["mean"]) if k in by_keep else "–" for k in keeps]
            cells.append([f"`{name}`", *means, *costs(shown, full), remark])
        parts.append(f"### {title}\n\n{lines(head, cells)}")
    return "\n\n".join(part for part in (unlearned(data), *parts) if part)


def facts(data: dict[str, Any]) -> str:
    timing = data["timing"]
    busy = "" if timing["quiet"] else (f" **The machine was busy: this process had {timing['core_share']:.0%} of its "
                                       "core. Take the times as rough, and their ratios too.**")
    return (f"`{data['command']}`, seeds {', '.join(map(str, data['seeds']))}, {data['steps']} training steps, "
            f"{data['questions']} questions per task and seed, {data['machine']}, commit {short(data['commit'])}, "
            f"{data['date']}. Prefill: `{data['command']} --only time`, {timing['machine']}, batch {timing['batch']}, "
            f"median of {timing['rounds']} rounds, load {timing['load']:g}, {timing['date']}.{busy}")


def short(commit: str) -> str:
    """The first figures of a commit; files that differed from it are not passed over."""
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def unlearned(data: dict[str, Any]) -> str:
    left = [task for task in data["tasks"] if task not in data["learned"]]
    return (f"**Left out of the mean: {', '.join(left)}. The unpruned model did not learn to answer "
            "better than by guessing (its band reaches down to that), so that such rows say nothing.**") if left else ""


def not_run_table(data: dict[str, Any]) -> str:
    return lines(["method", "why"], ([f"`{one['method']}`", one["reason"]] for one in data["not_run"]))


def table_file(data: dict[str, Any]) -> str:
    return ("# Retention: all rows\n\nAccuracy in %, ± half of its 95 % band over seeds. A small model on a "
            f"synthetic task: no claim about models of 7B parameters.\n\n{facts(data)}\n\n{unlearned(data)}\n\n"
            f"{full_table(data)}\n\n## Not run\n\n{not_run_table(data)}\n")


def replace(text: str, name: str, body: str) -> str:
    """What stands between `<!-- name -->` and `<!-- end of name -->`."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
    if not re.search(pattern, text, re.S):
        raise ValueError(f"retention: the page has no markers `{name}`, allowed: <!-- {name} --> and its end")
    return re.sub(pattern, lambda m: f"{m[1]}{body}\n{m[2]}", text, flags=re.S)


def page(text: str, data: dict[str, Any]) -> str:
    for name, body in (("facts", facts(data)), ("table", short_table(data)), ("not run", not_run_table(data))):
        text = replace(text, name, body)
    return text


def write(data: dict[str, Any], results: Path) -> None:
    from . import plots

    (results / "table.md").write_text(table_file(data))
    PAGE.write_text(page(PAGE.read_text(), data))
    IMAGES.mkdir(parents=True, exist_ok=True)
    plots.methods(data, IMAGES / "methods.png")
    plots.tasks(data, IMAGES / "tasks.png")
    plots.positions(data, IMAGES / "positions.png")
    plots.cost(data, IMAGES / "cost.png")
