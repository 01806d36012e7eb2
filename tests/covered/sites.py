"""The places of the package that refuse an argument: every call of `fail` in the checks and the contracts."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

PLACES = ("vtkernels/_checks.py", "vtkernels/_library.py", "vtkernels/_contracts")


def _names_fail(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in ("fail", "_fail")


def sites(path: Path) -> list[int]:
    """The lines of the calls of `fail` and of the `raise` statements."""
    tree = ast.parse(path.read_text())
    return sorted({node.lineno for node in ast.walk(tree) if isinstance(node, ast.Raise)
                   or (isinstance(node, ast.Call) and _names_fail(node))})


def unraised(root: Path, missed: Mapping[str, Sequence[int]]) -> tuple[int, list[str]]:
    """How many such places there are, and those that no test reached."""
    files = [file for place in PLACES
             for file in (sorted((root / place).rglob("*.py")) if (root / place).is_dir() else [root / place])]
    found = [(str(file.relative_to(root)), line) for file in files for line in sites(file)]
    return len(found), [f"{name}:{line}" for name, line in found if line in set(missed.get(name, ()))]
