"""One run of `make gpu`: its steps with their deadlines, their outcomes, and what an earlier run has already passed.

The record `make_gpu.json` in the device's results folder is the state too: a step that passed on the same sources, the
same device and the same versions is kept and not run again.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vtkernels.prototypes.io import write_atomically

from . import environment, programs

SHOWN_LINES = 25
UNFINISHED = 75  # exit code of a step that stopped by itself for want of time and can go on from there (EX_TEMPFAIL)
SOURCES = ("csrc", "vtkernels", "benchmarks", "tests", "setup.py")
DONE = ("passed", "kept")
SAME = ("device", "torch", "triton", "cuda", "tree")


@dataclass
class Outcome:
    """What became of one step: passed, kept (passed before), failed, unfinished (out of time), skipped (and why)."""

    part: str
    step: str
    status: str
    seconds: float
    detail: str = ""


@dataclass
class Command:
    step: str
    words: list[str]
    environment: dict[str, str]
    judge: Callable[[int, str], str | None] | None = None  # why it failed, by exit code and output
    detail: Callable[[str], str] = lambda output: ""
    makes: list[Path] = field(default_factory=list)  # a step is kept only while these exist


def tree() -> str:
    """A hash of every source file, with or without git; results and what is built do not count."""
    digest = hashlib.sha256()
    paths = [p for name in SOURCES for p in sorted((environment.ROOT / name).rglob("*")) or [environment.ROOT / name]]
    for path in paths:
        if path.is_file() and not {"__pycache__", "results"} & set(path.parts) and path.suffix != ".so":
            digest.update(f"{path.relative_to(environment.ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class Session:
    """Options, deadlines and outcomes of one run."""

    def __init__(self, dry_run: bool, results: Path | None, commit: str | None) -> None:
        self.dry_run, self.commit = dry_run, commit
        self.device = "cpu" if dry_run else "cuda"
        self.logs = Path(tempfile.mkdtemp(prefix="vtkernels_gpu_"))
        self.results = results or (self.logs / "results" if dry_run else environment.RESULTS)
        self.outcomes: list[Outcome] = []
        self.kept: dict[tuple[str, str], Outcome] = {}
        self.env = dict(os.environ)
        self.env["PYTHONUNBUFFERED"] = "1"
        self.env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(environment.ROOT), self.env.get("PYTHONPATH")]))
        nvcc = programs.find_nvcc()
        if nvcc:
            self.env["PATH"] = os.pathsep.join([str(nvcc.parent), self.env.get("PATH", "")])

    def resume(self, path: Path, facts: dict[str, Any], fresh: Sequence[str]) -> None:
        """Keep the passed steps of an earlier record, of the parts that are not to run afresh."""
        record = json.loads(path.read_text()) if path.is_file() else {}
        if record.get("dry_run") == self.dry_run and all(record.get(name) == facts[name] for name in SAME):
            self.kept = {(s["part"], s["step"]): Outcome(**s) for s in record["steps"]
                         if s["status"] in DONE and s["part"] not in fresh}

    def record(self, part: str, step: str, status: str, seconds: float = 0.0, detail: str = "") -> None:
        outcome = Outcome(part, step, status, round(seconds, 1), detail)
        self.outcomes.append(outcome)
        print(f"  {status:10} {seconds:6.1f} s  {part}: {step}{'  ' + detail if detail else ''}", flush=True)

    def run(self, part: str, command: Command, deadline: float) -> None:
        """Run to the end or to the deadline; the log's tail is shown where it did not pass."""
        before = self.kept.get((part, command.step))
        if before and all(path.exists() for path in command.makes):
            return self.record(part, command.step, "kept", before.seconds, before.detail)
        start = time.monotonic()
        log = self.logs / f"{part}-{re.sub(r'[^a-z0-9]+', '-', command.step.lower())}.log"
        with log.open("w") as file:
            process = subprocess.Popen(command.words, cwd=environment.ROOT, env={**self.env, **command.environment},
                                       stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code: int | None = process.wait(max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = None
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.monotonic() - start
        output = log.read_text(errors="replace")
        if code is None or (code == UNFINISHED and not command.judge):
            status, reason = "unfinished", f"stopped after {seconds:.0f} s: {last_line(output)}"
        else:
            found = command.judge(code, output) if command.judge else (f"exit code {code}" if code else None)
            status, reason = "failed" if found else "passed", found or command.detail(output)
        self.record(part, command.step, status, seconds, reason)
        if status != "passed":
            print("\n".join(f"    | {line}" for line in output.splitlines()[-SHOWN_LINES:]), flush=True)
        return None

    def side_by_side(self, part: str, commands: Sequence[Command], deadline: float, workers: int) -> None:
        with ThreadPoolExecutor(max(1, workers)) as pool:
            list(pool.map(lambda command: self.run(part, command, deadline), commands))

    def save(self, path: Path, facts: dict[str, Any], seconds: float) -> None:
        """The record: this run's steps, and those of an earlier run that it did not come to."""
        ran = {(o.part, o.step) for o in self.outcomes}
        steps = [*self.outcomes, *(o for key, o in self.kept.items() if key not in ran)]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps({**facts, "seconds": round(seconds, 1), "dry_run": self.dry_run,
                                            "steps": [asdict(o) for o in steps]}, indent=1) + "\n").encode())


def last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1].strip("= ") if lines else "no output"
