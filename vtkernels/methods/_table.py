"""The methods as a table: for `python -m vtkernels methods` and, as Markdown, for the docs."""

from collections.abc import Iterable, Sequence
from typing import Any

from ._registry import methods

COLUMNS = ("name", "method", "acts at", "needs", "returns", "class", "spec", "tested on", "defaults")
# What `tests/test_methods.py` and `tests/interpreted/test_methods_*.py` prove of every method that is listed.
STATE = ("the same tokens and values as its loop on the kernels named (Triton's in the interpreter), rows independent, "
         "no host sync; GPUs not run")


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value).replace("'", "")


def rows() -> list[tuple[str, ...]]:
    out: list[tuple[str, ...]] = []
    for name, method in methods().items():
        info = method.info
        defaults = ", ".join(f"{k}={_value(v)}" for k, v in method.defaults().items())
        out.append((name, info.title, info.place, ", ".join(info.needs), info.returns, info.taxonomy, info.evidence,
                    "C++, Triton" if method.kernels else "torch", defaults))
    return out


def text() -> str:
    table: Sequence[tuple[str, ...]] = [COLUMNS, *rows()]
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS) - 1)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in table]
    return "\n".join([*lines, "", f"{len(table) - 1} methods; tested: {STATE}"])


def markdown() -> str:
    """A table per family."""
    families: dict[str, list[tuple[str, ...]]] = {}
    for row, method in zip(rows(), methods().values(), strict=True):
        source = method.info.source
        families.setdefault(method.info.family, []).append((f"`{row[0]}`", f"{row[1]} ({source})", *row[2:]))
    parts = []
    for family, lines in families.items():
        parts.append(f"## {family.capitalize()}\n\n{_lines(lines)}")
    return "\n\n".join(parts) + "\n"


def _lines(lines: Iterable[tuple[str, ...]]) -> str:
    head = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(head + [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines])
