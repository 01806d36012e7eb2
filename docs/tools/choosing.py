"""Choosing a method: the table and the decision picture, from the data of the retention experiment."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vtkernels.methods import _registry

from . import DOCS, IMAGES, ROOT, digest, replace, short, table

DATA = ROOT / "examples" / "retention" / "results" / "retention.json"
PAGE = DOCS / "choosing.md"
PICTURE = IMAGES / "choosing.png"
BASELINES = ("random", "uniform")
PLACES = {"outer": "before the model", "inner": "inside"}
SHOWN = (0.25, 0.11)  # shares in the picture; the first one orders methods
BEST = 3

Row = dict[str, Any]


class Leaf(NamedTuple):
    question: str
    answer: str
    member: Callable[[Row], bool]


# It takes an importance or the tower's attention, so the registry demands neither; the experiment gave it the latter.
ELSE = {"vflowopt": {"vision"}}


def _needs(row: Row) -> set[str]:
    found = _registry.methods().get(row["method"])
    return set(found.info.needs) | ELSE.get(row["method"], set()) if found else set()


# Asked from the top; the first that is true decides.
TREE = (
    Leaf("Is the memory of decoding the cost,\nand may the prefill stay as it is?",
         "cache methods: keys and values after the prompt",
         lambda row: row["where"] == "cache"),
    Leaf("Does the question decide what matters,\nand is it known where you prune?",
         "methods that look at the question",
         lambda row: row["query_aware"] and row["where"] in ("outer", "inner")),
    Leaf("Is the attention of the vision tower at hand?",
         "methods that look at the tower, before the language model",
         lambda row: row["where"] == "outer" and not row["query_aware"] and "vision" in _needs(row)),
    Leaf("The visual tokens alone are at hand,\nas they are in most engines.",
         "methods that look at the tokens alone",
         lambda row: row["where"] == "outer" and not row["query_aware"] and _needs(row) <= {"hidden", "grid"}),
)


def load(path: Path = DATA) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _accuracy(row: Row) -> float:
    """The mean of the tasks that the model learned, and of all seeds."""
    return row["accuracy"]["mean"]["mean"]


def _label(row: Row) -> str:
    return f"{row['method']} ({row['where']})"


def by_method(data: dict[str, Any]) -> dict[str, dict[float | None, Row]]:
    """Rows of each method and place by share, with positions preserved where that was run."""
    out: dict[str, dict[float | None, Row]] = {}
    for row in sorted(data["rows"], key=lambda r: r["policy"] != "preserve"):
        out.setdefault(_label(row), {}).setdefault(row["keep"], row)
    return out


def best(data: dict[str, Any], leaf: Leaf) -> list[tuple[str, list[float | None]]]:
    """The best of a leaf, with their share of the unpruned accuracy at each of SHOWN."""
    full = _accuracy(data["full"])
    found = []
    for rows in by_method(data).values():
        first = next(iter(rows.values()))
        if first["method"] not in BASELINES and leaf.member(first) and SHOWN[0] in rows:
            shares = [_accuracy(rows[k]) / full if k in rows else None for k in SHOWN]
            found.append((first["method"], shares))
    ordered = sorted(found, key=lambda f: (f[1][0], f[0]))
    # A method that acts in two places stands where it is best.
    return [(name, dict(ordered)[name]) for name in dict.fromkeys(name for name, _ in reversed(ordered))][:BEST]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}"


def leaf_text(data: dict[str, Any] | None, leaf: Leaf) -> str:
    found = best(data, leaf) if data else []
    lines = [f"{name}: {' / '.join(map(_percent, shares))} %" for name, shares in found]
    return "\n".join([leaf.answer, *(lines or ["not measured"])])


def baseline_text(data: dict[str, Any] | None) -> str:
    if data is None:
        return "The retention experiment has no results yet."
    full = _accuracy(data["full"])
    parts = []
    for where, place in PLACES.items():
        for name in BASELINES:
            rows = by_method(data).get(f"{name} ({where})", {})
            if all(k in rows for k in SHOWN):
                parts.append(f"{name} {place}: {' / '.join(_percent(_accuracy(rows[k]) / full) for k in SHOWN)} %")
    shares = " and ".join(f"{k:.0%}" for k in SHOWN)
    lines = [f"Percentages: accuracy relative to the unpruned model, {shares} of the tokens kept, mean of the tasks.",
             "A small model on synthetic tasks. Baselines:", ", ".join(parts) or "not run"]
    return "\n".join(lines)


def picture_data(data: dict[str, Any] | None) -> list[str]:
    """All words of the picture."""
    return [text for leaf in TREE for text in (leaf.question, leaf_text(data, leaf))] + [baseline_text(data)]


def draw(data: dict[str, Any] | None, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    step, top = 1.5, 1.5 * len(TREE)
    figure = Figure(figsize=(10, 0.95 * top + 0.9))
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 10), ylim=(-0.85, top))
    axis.axis("off")
    arrow = {"arrowstyle": "-|>", "color": "0.3", "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
    for i, leaf in enumerate(TREE):
        y = top - step * (i + 0.5)
        _box(axis, 0.15, y, 3.85, "#dfe3f5")
        axis.text(2.07, y, leaf.question, ha="center", va="center", fontsize=10.5, linespacing=1.35)
        _box(axis, 4.95, y, 4.9, "#e4f1e4")
        title, rest = leaf_text(data, leaf).split("\n", 1)
        axis.text(7.4, y + 0.42, title, ha="center", va="center", fontsize=10, weight="bold")
        axis.text(7.4, y - 0.12, rest, ha="center", va="center", fontsize=10, linespacing=1.35)
        axis.annotate("", (4.95, y), (4.0, y), arrowprops=arrow)
        if i + 1 < len(TREE):
            axis.text(4.47, y + 0.1, "yes", ha="center", fontsize=10, color="0.3")
            axis.annotate("", (2.07, y - step + 0.58), (2.07, y - 0.58), arrowprops=arrow)
            axis.text(2.2, y - step / 2, "no", va="center", fontsize=10, color="0.3")
    axis.text(0.15, -0.4, baseline_text(data), fontsize=9.5, va="center", color="0.25")
    figure.savefig(path, dpi=110, metadata={"Description": digest(picture_data(data))})


def _box(axis: Any, x: float, y: float, width: float, colour: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    axis.add_patch(FancyBboxPatch((x + 0.1, y - 0.48), width - 0.2, 0.96, boxstyle="round,pad=0.1", facecolor=colour,
                                  edgecolor="0.45"))


def methods_table(data: dict[str, Any] | None) -> str:
    """A row for each method and place, the best first; the unpruned model above all."""
    if data is None:
        return "The retention experiment has no results yet: `python -m examples.retention` makes them."
    keeps = data["keep"]
    rows = by_method(data)
    own = {label: of[None] for label, of in rows.items() if list(of) == [None]}

    def order(item: tuple[str, dict[float | None, Row]]) -> tuple[float, str]:
        row = item[1].get(SHOWN[0]) or next(iter(item[1].values()))
        return -_accuracy(row), item[0]

    full = data["full"]
    head = ("method", "where", "looks at", "the question", *(f"{k:.0%}" for k in keeps), "prefill, ms", "K and V, kB")
    lines = [("unpruned", "", "", "", *[_mean(full)] * len(keeps), f"{full['prefill_ms']:.2f}",
              f"{full['kv_bytes'] / 1e3:.0f}")]
    for label, of in sorted(rows.items(), key=order):
        first = next(iter(of.values()))
        cost = of.get(SHOWN[0])
        if label in own:
            continue
        lines.append((f"`{first['method']}`", first["where"], _signals(first), "yes" if first["query_aware"] else "no",
                      *(_mean(of[k]) if k in of else "–" for k in keeps),
                      f"{cost['prefill_ms']:.2f}" if cost else "–", f"{cost['kv_bytes'] / 1e3:.0f}" if cost else "–"))
    parts = [table(head, lines)]
    if own:
        head = ("method", "where", "looks at", "tokens left", "accuracy", "prefill, ms", "K and V, kB")
        chosen = [(f"`{r['method']}`", r["where"], _signals(r), f"{r['kept']:.1f} of {data['visual_tokens']}", _mean(r),
                   f"{r['prefill_ms']:.2f}", f"{r['kv_bytes'] / 1e3:.0f}") for r in own.values()]
        parts += ["Methods that find their own count:", table(head, chosen)]
    seeds = len(data["seeds"])
    quiet = "" if data.get("timing", {}).get("quiet", True) else " (times taken beside other work)"
    parts.append(f"Accuracy in %, mean over the tasks that the model learned ({', '.join(data['learned'])}) and "
                 f"{seeds} seeds; prefill, K and V at {SHOWN[0]:.0%}{quiet}. `{data['command']}`, {data['machine']}, "
                 f"commit {short(data['commit'])}, {data['date']}.")
    return "\n\n".join(parts)


def _mean(row: Row) -> str:
    return f"{100 * _accuracy(row):.1f}"


def _signals(row: Row) -> str:
    return "" if row["method"] in BASELINES else ", ".join(sorted(_needs(row)))


def page(text: str, data: dict[str, Any] | None) -> str:
    return replace(text, "retention", methods_table(data))


def write() -> None:
    data = load()
    PAGE.write_text(page(PAGE.read_text(), data))
    draw(data, PICTURE)
