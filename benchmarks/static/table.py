"""The committed table of static figures, the page made from it, and what counts as worse."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..environment import ROOT
from .occupancy import LIMITS, blocks, occupancy

FOLDER = Path(__file__).parent
PAGE = ROOT / "docs/kernels.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"
KINDS = ("triton", "cuda")
Figures = dict[str, Any]


def path(arch: str) -> Path:
    return FOLDER / f"{arch}.json"


def load(arch: str) -> dict[str, Any]:
    return json.loads(path(arch).read_text())


def with_occupancy(figures: Figures, arch: str) -> Figures:
    """Blocks and share of warps of a multiprocessor; none where the number of warps is not known."""
    if not figures["warps"]:
        return {**figures, "blocks": None, "occupancy": None}
    args = (arch, figures["registers"], figures["shared"], figures["warps"])
    return {**figures, "blocks": blocks(*args), "occupancy": round(occupancy(*args), 3)}


def dumps(table: Mapping[str, Any]) -> str:
    """JSON with a line per kernel, so that a change shows what it changes."""
    kinds = [f' "{kind}": {{\n' + ",\n".join(f"  {json.dumps(name)}: {json.dumps(figures)}"
                                             for name, figures in sorted(table[kind].items())) + "\n }"
             for kind in KINDS]
    head = [f' "{key}": {json.dumps(table[key])}' for key in ("arch", "versions")]
    return "{\n" + ",\n".join([*head, *kinds]) + "\n}\n"


def limits(name: str, figures: Figures, arch: str) -> list[str]:
    """What no kernel may do, whatever the table says."""
    found = []
    if figures["stack"] or figures["local"]:
        found.append(f"{name}: {figures['stack']} bytes of stack, {figures['local']} accesses to local memory")
    if figures["registers"] > 255 or figures["shared"] > LIMITS[arch].block_shared or figures.get("blocks") == 0:
        size = f"{figures['registers']} registers, {figures['shared']} bytes"
        found.append(f"{name}: {size} of shared memory do not fit")
    if figures.get("product") and not figures["matrix"]:
        found.append(f"{name}: its products are not on the matrix units")
    return found


def wide_share(counts: Mapping[str, int]) -> float:
    """Share of the bytes that 16-byte accesses move."""
    total = sum(int(width) * n for width, n in counts.items())
    return 16 * counts.get("16", 0) / total if total else 1.0


def units(figures: Figures) -> set[str]:
    """`HGMMA`, `HMMA`, ..: which matrix instructions there are, whatever their shapes."""
    return {name.split(".")[0] for name in figures["matrix"]}


def worse(name: str, now: Figures, committed: Figures, same_compiler: bool) -> list[str]:
    """What got worse. Another compiler may allocate otherwise; the kinds of instructions must stay all the same."""
    found = [f"{name}: {unit} is gone, now {sorted(units(now)) or 'none'}" for unit in units(committed) - units(now)]
    for what in ("loads", "stores"):
        was, is_now = wide_share(committed[what]), wide_share(now[what])
        if is_now < was - 1e-9 and (same_compiler or not is_now):
            found.append(f"{name}: {is_now:.0%} of the bytes of its {what} are in 16-byte accesses, were {was:.0%}")
    for what in ("registers", "shared") if same_compiler else ():
        if now[what] > committed[what]:
            found.append(f"{name}: {what} {now[what]}, was {committed[what]}")
    return found


def compare(kind: str, now: Mapping[str, Figures], table: Mapping[str, Any], versions: Mapping[str, str]) -> list[str]:
    """Everything wrong with the figures of these kernels."""
    arch, committed = table["arch"], table[kind]
    same = all(versions[v] == table["versions"][v] for v in COMPILERS[kind])
    found = []
    for name, figures in now.items():
        found += limits(name, figures, arch)
        if name not in committed:
            found.append(f"{name}: not in the table, run python -m benchmarks.static --write")
        else:
            found += worse(name, figures, committed[name], same)
    return found


COMPILERS = {"triton": ("triton", "ptxas"), "cuda": ("nvcc",)}


def _row(name: str, f: Figures) -> str:
    loop, warps = f["loop"], f["warps"]
    matrix = ", ".join(dict.fromkeys(m.split(".")[0] + " " + m.split(".")[1] for m in f["matrix"])) or "-"
    moved, done = loop.get("bytes", 0) * warps, loop.get("flops", 0) * warps
    cells = [f"`{name}`", warps or "-", f["registers"], f"{f['shared'] / 1024:.1f}",
             "-" if f["blocks"] is None else f"{f['blocks']} ({f['occupancy']:.0%})",
             f"{wide_share(f['loads']):.0%}", f"{wide_share(f['stores']):.0%}", matrix,
             moved or "-", done or "-", f"{done / moved:.0f}" if moved and done else "-"]
    return "| " + " | ".join(map(str, cells)) + " |"


def markdown(table: Mapping[str, Any]) -> str:
    versions = table["versions"]
    titles = {"triton": f"Triton {versions['triton']}, ptxas {versions['ptxas']}", "cuda": f"nvcc {versions['nvcc']}"}
    head = ["kernel", "warps", "registers", "shared KB", "blocks per SM", "wide loads", "wide stores", "matrix units",
            "bytes a trip", "FLOP a trip", "FLOP/byte"]
    parts = []
    for kind in KINDS:
        rows = [_row(name, figures) for name, figures in sorted(table[kind].items())]
        parts += [f"### {titles[kind]}, {table['arch']}: {len(rows)} kernels", "", "| " + " | ".join(head) + " |",
                  "|" + "---|" * len(head), *rows, ""]
    return "\n".join(parts)


def write_page(table: Mapping[str, Any]) -> None:
    text = PAGE.read_text()
    PAGE.write_text(re.sub(f"(?s){BEGIN}.*{END}", lambda _: f"{BEGIN}\n{markdown(table)}\n{END}", text))


def summary(table: Mapping[str, Any]) -> str:
    every: Sequence[Figures] = [f for kind in KINDS for f in table[kind].values()]
    known = [f for f in every if f["occupancy"] is not None]
    return (f"{len(table['triton'])} Triton and {len(table['cuda'])} CUDA kernels for {table['arch']}: at most "
            f"{max(f['registers'] for f in every)} registers and {max(f['shared'] for f in every) / 1024:.0f} KB of "
            f"shared memory, {sum(bool(f['stack'] or f['local']) for f in every)} with local memory, "
            f"{sum('HGMMA' in units(f) for f in every)} with HGMMA, {sum('HMMA' in units(f) for f in every)} with "
            f"HMMA, lowest occupancy {min(f['occupancy'] for f in known):.0%}")
