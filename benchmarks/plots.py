"""A chart of a run: every implementation's time per shape, from measured rows only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot(rows: Sequence[dict[str, Any]], facts: dict[str, Any], path: Path) -> None:
    """Bars of ours, the peers and the floors, a panel per op and mode; log scale, whiskers from p10 to p90."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    timed = [r for r in rows if r["check"] == "ok"]
    if not timed:
        raise ValueError("plot: no row has a time")
    panels = list(dict.fromkeys((r["op"], r["mode"]) for r in timed))
    sizes = [sum(r["op"] == op and r["mode"] == mode for r in timed) for op, mode in panels]
    figure, axes = plt.subplots(len(panels), 1, figsize=(10, 1.5 * len(panels) + 1.1 * sum(sizes)), squeeze=False,
                                gridspec_kw={"height_ratios": sizes}, layout="constrained")
    for (op, mode), axis in zip(panels, axes[:, 0], strict=True):
        shown = [r for r in timed if r["op"] == op and r["mode"] == mode]
        series = [{"vtkernels": r["ours"], **r["peers"], **r["floors"]} for r in shown]
        names = list(dict.fromkeys(n for s in series for n in s))
        height = 0.8 / len(names)
        for i, name in enumerate(names):
            at = [j + i * height for j, s in enumerate(series) if name in s]
            entries = [s[name] for s in series if name in s]
            medians = [e["median_us"] / 1e3 for e in entries]
            spread = [[m - e["p10_us"] / 1e3 for m, e in zip(medians, entries, strict=True)],
                      [e["p90_us"] / 1e3 - m for m, e in zip(medians, entries, strict=True)]]
            axis.barh(at, medians, height, xerr=spread, label=name, color="black" if name == "vtkernels" else f"C{i}",
                      error_kw={"elinewidth": 0.8})
        axis.set_yticks([j + 0.4 - height / 2 for j in range(len(shown))],
                        [f"{r['name']}\n{r['backend']}" for r in shown])
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.set_xlabel("ms")
        axis.set_title(f"{op} ({mode})")
        axis.legend(fontsize="small", ncols=2)
    figure.suptitle(f"{facts['device']}, torch {facts['torch']}, commit {(facts['commit'] or 'unknown')[:12]}")
    figure.savefig(path, dpi=120)
    plt.close(figure)
