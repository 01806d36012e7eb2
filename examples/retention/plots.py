"""Pictures of the results: methods by share, tasks, position policies, accuracy against time."""

from pathlib import Path
from typing import Any

from .report import MARKS, ORDERED_BY, WHERE, mean_of, ordered, rows_of

SHOWN_TASKS = 0.11  # the share of the picture of tasks


def _figure(size: tuple[float, float], *grid: Any, **options: Any) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(*grid, squeeze=False, **options)


def _first_policy(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["policy"] == rows[0]["policy"]]


def methods(data: dict[str, Any], path: Path) -> None:
    """Mean accuracy of every method by share, with bands."""
    names = {where: ordered(data, where) for where in WHERE}
    figure, axes = _figure((8, 0.27 * sum(map(len, names.values())) + 2), 3, 1, sharex=True,
                           height_ratios=[len(names[where]) + 1 for where in WHERE])
    full = data["full"]["accuracy"]["mean"]
    for where, axis in zip(WHERE, axes[:, 0], strict=True):
        axis.axvspan(100 * full["low"], 100 * full["high"], color="0.85")
        for i, name in enumerate(names[where]):
            for row in _first_policy(rows_of(data, where, name)):
                band, (mark, colour) = row["accuracy"]["mean"], MARKS[row["keep"]]
                axis.plot([100 * band["low"], 100 * band["high"]], [i, i], color=colour, linewidth=1)
                axis.plot(100 * band["mean"], i, mark, color=colour, markersize=5)
        axis.set_yticks(range(len(names[where])), names[where], fontsize=8)
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
        axis.set_title(WHERE[where], fontsize=10)
    for keep, (mark, colour) in MARKS.items():
        axes[0, 0].plot([], [], mark, color=colour, label="own count" if keep is None else f"keep {keep:.0%}")
    axes[0, 0].legend(fontsize=8, loc="lower right")
    axes[-1, 0].set_xlabel("accuracy, %, mean of the tasks with its 95 % band over seeds (grey: unpruned)")
    figure.savefig(path, dpi=100)


def tasks(data: dict[str, Any], path: Path) -> None:
    """Accuracy of each task at one share."""
    labels, cells = ["unpruned"], [[100 * data["full"]["accuracy"][task]["mean"] for task in data["tasks"]]]
    for where in WHERE:
        for name in ordered(data, where):
            for row in _first_policy(rows_of(data, where, name)):
                if row["keep"] == SHOWN_TASKS:
                    labels.append(f"{name} ({where})")
                    cells.append([100 * row["accuracy"][task]["mean"] for task in data["tasks"]])
    figure, axes = _figure((6, 0.24 * len(labels) + 1), 1, 1)
    axis = axes[0, 0]
    axis.imshow(cells, aspect="auto", cmap="viridis", vmin=0, vmax=100)
    for y, values in enumerate(cells):
        for x, value in enumerate(values):
            axis.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=8, color="w" if value < 65 else "k")
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_xticks(range(len(data["tasks"])), data["tasks"], fontsize=8)
    axis.set_title(f"accuracy, %, with {SHOWN_TASKS:.0%} of the visual tokens", fontsize=10)
    figure.savefig(path, dpi=100)


def positions(data: dict[str, Any], path: Path) -> None:
    """`pack` against `preserve`, a point for each method and share."""
    pairs: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in data["rows"]:
        pairs.setdefault((row["where"], row["method"], row["keep"]), {})[row["policy"]] = row
    figure, axes = _figure((8.5, 4.3), 1, 2, sharex=True, sharey=True)
    for where, axis in zip(("outer", "inner"), axes[0], strict=True):
        axis.plot([0, 100], [0, 100], color="0.7", linewidth=1)
        for (place, _, keep), pair in pairs.items():
            if place == where and len(pair) == 2:
                mark, colour = MARKS[keep]
                point = [100 * mean_of(pair[policy]) for policy in ("preserve", "pack")]
                axis.plot(*point, mark, color=colour, markersize=5)
        axis.set_title(WHERE[where], fontsize=10)
        axis.set_xlabel("preserve: accuracy, %")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("pack: accuracy, %")
    for keep, (mark, colour) in MARKS.items():
        if keep is not None:
            axes[0, 0].plot([], [], mark, color=colour, label=f"keep {keep:.0%}")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def cost(data: dict[str, Any], path: Path) -> None:
    """Accuracy against prefill time, both of the unpruned model, at one share; names beside the points."""
    figure, axes = _figure((8, 5), 1, 1)
    axis, full = axes[0, 0], data["full"]
    for i, where in enumerate(WHERE):
        axis.plot([], [], "o", color=f"C{i}", label=where)
        for name in ordered(data, where):
            for row in _first_policy(rows_of(data, where, name)):
                if row["keep"] == ORDERED_BY:
                    x, y = row["prefill_ms"] / full["prefill_ms"], 100 * mean_of(row)
                    axis.plot(x, y, "o", color=f"C{i}", markersize=4)
                    axis.annotate(name, (x, y), (3, 2), textcoords="offset points", fontsize=6.5)
    axis.plot(1, 100 * mean_of(full), "k*", markersize=10, label="unpruned")
    axis.axvline(1, color="0.7", linewidth=1)
    axis.set_xlabel(f"prefill time relative to unpruned, with {ORDERED_BY:.0%} of the tokens" +
                    ("" if data["timing"]["quiet"] else " (busy machine: rough)"))
    axis.set_ylabel("accuracy, %, mean of the tasks")
    axis.margins(x=0.12)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
