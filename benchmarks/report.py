"""A short table from result files: for every shape the faster backend, its share of the roofline, the best peer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODES = ("graph warm", "graph cold", "eager")


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        yield from (row for row in content.get("rows", []) if "op" in row and "check" in row)


def best(folder: Path) -> list[str]:
    """A line for each shape of each op: microseconds by mode, of the backend that is fastest in the first mode."""
    shapes: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows(folder):
        shapes.setdefault((row["op"], row["name"]), []).append(row)
    lines = [f"{'op and shape':64} {'backend':7} " + " ".join(f"{m:>10}" for m in MODES) + "  roof  best peer"]
    for (op, name), found in shapes.items():
        good = [r for r in found if r["check"] == "ok"]
        lines += [f"{op} {name}: {r['backend']}: no speed: {r['check']}" for r in found if r["check"] != "ok"]
        if good:
            fastest = min((r for r in good if r["mode"] == good[0]["mode"]), key=lambda r: r["ours"]["median_us"])
            by_mode = {r["mode"]: r for r in good if r["backend"] == fastest["backend"]}
            cells = [f"{by_mode[m]['ours']['median_us']:7.1f} us" if m in by_mode else f"{'-':>10}"
                     for m in MODES]
            roof = f"{fastest['roofline']['percent']:4.0f}%" if "roofline" in fastest else "   - "
            peer = f"{fastest['ratio']:.2f}x {fastest['best_peer']}" if fastest.get("ratio") else "-"
            lines.append(f"{f'{op} {name}':64.64} {fastest['backend']:7} {' '.join(cells)} {roof}  {peer}")
    return lines
