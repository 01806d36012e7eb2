"""The figures in docs/reliability.md: `python -m tests.reliability` writes the table from docs/reliability.json.

The harnesses in this folder put their last line there with --record, all of them with `make ... RECORD=1`.
"""

import datetime
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
FIGURES, PAGE = ROOT / "docs/reliability.json", ROOT / "docs/reliability.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"


def commit() -> str:
    """Of what is run, dirty where another file than the two that are written here has changed."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    written = (f":!{path.relative_to(ROOT)}" for path in (FIGURES, PAGE))
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *written)
    return (git("rev-parse", "--short", "HEAD") or "unknown") + "-dirty" * bool(changed)


def record(what: str, figure: str, command: str) -> None:
    """Keep the last figure of a kind, with where it comes from, and write the table anew."""
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    figures[what] = {"figure": figure, "command": command.replace(" --record", ""), "commit": commit(),
                     "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
                     "torch": torch.__version__, "machine": platform.machine()}
    FIGURES.write_text(json.dumps(dict(sorted(figures.items())), indent=1) + "\n")
    write()


def suite_figure(printed: str) -> str:
    """The last line of pytest's output. What it left out is printed here, with the reason."""
    lines = printed.strip().splitlines()
    for line in lines:
        if line.startswith(("SKIPPED", "XFAIL")):
            print(f"  {line}", flush=True)
    return lines[-1]


def table() -> str:
    lines = ["| what | figure | command | torch, commit, date |", "|---|---|---|---|"]
    for what, entry in json.loads(FIGURES.read_text()).items():
        where = f"{entry['torch']}, {entry['commit']}, {entry['date']}"
        lines.append(f"| {what} | {entry['figure'].replace('|', '/')} | `{entry['command']}` | {where} |")
    return "\n".join(lines) + "\n"


def write() -> None:
    text = PAGE.read_text()
    PAGE.write_text(re.sub(f"(?s){BEGIN}.*{END}", lambda _: BEGIN + table() + END, text))


if __name__ == "__main__":
    write()
    sys.exit(0)
