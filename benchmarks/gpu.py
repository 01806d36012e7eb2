"""`make gpu`: build, test, sanitize and benchmark on an NVIDIA GPU, inside ten minutes, without network.

Every part has a share of the time. A part that runs out of it is reported as unfinished, which is not a pass.
Without a GPU: `--dry-run` goes through every step that needs none.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from . import environment

SECONDS = {"build": 150, "test": 190, "sanitize": 70, "bench": 180}  # ten minutes, less starting and ending
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Test processes side by side; Triton compiles a kernel for each new kind of arguments, so its share is split.
GPU_TESTS = ("triton and prune_topk and not prune_topk_varlen", "triton and prune_topk_varlen", "triton and not prune",
             "not triton")
SHOWN_LINES = 25


@dataclass
class Outcome:
    """What became of one step: passed, failed, unfinished (out of time) or skipped (with the reason)."""

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


class Session:
    """One run of the driver: options, deadline, outcomes."""

    def __init__(self, dry_run: bool, results: Path | None, commit: str | None) -> None:
        self.dry_run, self.commit = dry_run, commit
        self.device = "cpu" if dry_run else "cuda"
        self.logs = Path(tempfile.mkdtemp(prefix="vtkernels_gpu_"))
        self.results = results or (self.logs / "results" if dry_run else environment.RESULTS)
        self.outcomes: list[Outcome] = []
        self.env = dict(os.environ)
        self.env["PYTHONUNBUFFERED"] = "1"
        self.env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(environment.ROOT), self.env.get("PYTHONPATH")]))
        nvcc = find_nvcc()
        if nvcc:
            self.env["PATH"] = os.pathsep.join([str(nvcc.parent), self.env.get("PATH", "")])

    def record(self, part: str, step: str, status: str, seconds: float = 0.0, detail: str = "") -> None:
        outcome = Outcome(part, step, status, round(seconds, 1), detail)
        self.outcomes.append(outcome)
        print(f"  {status:10} {seconds:6.1f} s  {part}: {step}{'  ' + detail if detail else ''}", flush=True)

    def run(self, part: str, command: Command, deadline: float) -> None:
        """Run to the end or to the deadline; the log's tail is shown where it did not pass."""
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
        if code is None:
            reason: str | None = f"no result after {seconds:.0f} s"
        else:
            reason = command.judge(code, output) if command.judge else (f"exit code {code}" if code else None)
        status = "unfinished" if code is None else "failed" if reason else "passed"
        self.record(part, command.step, status, seconds, reason or command.detail(output))
        if status != "passed":
            print("\n".join(f"    | {line}" for line in output.splitlines()[-SHOWN_LINES:]), flush=True)


def find_nvcc() -> Path | None:
    found = shutil.which("nvcc")
    if found:
        return Path(found)
    from torch.utils.cpp_extension import CUDA_HOME
    candidate = Path(CUDA_HOME) / "bin" / "nvcc" if CUDA_HOME else None
    return candidate if candidate and candidate.is_file() else None


def side_by_side(session: Session, part: str, commands: Sequence[Command], deadline: float, workers: int) -> None:
    with ThreadPoolExecutor(max(1, workers)) as pool:
        list(pool.map(lambda command: session.run(part, command, deadline), commands))


def build(session: Session, deadline: float) -> None:
    """Both native libraries in place, for this GPU alone, and proof that both load."""
    if find_nvcc() is None:
        return session.record("build", "nvcc", "failed", detail="nvcc is neither on PATH nor under CUDA_HOME")
    arch = "90" if session.dry_run else "".join(map(str, torch.cuda.get_device_capability()))
    words = [sys.executable, "setup.py", "build_ext"]
    if session.dry_run:
        words += ["--build-lib", str(session.logs / "lib"), "--build-temp", str(session.logs / "temp")]
    else:
        words += ["--inplace"]
    session.run("build", Command(f"_C_cpu and _C_cuda for sm_{arch}", words,
                                 {"VTKERNELS_BUILD_NATIVE": "1", "VTKERNELS_CUDA_ARCHS": arch}), deadline)
    smoke = str(session.logs / "smoke_cuda")
    kernels = sorted(str(p.relative_to(environment.ROOT)) for p in (environment.ROOT / "csrc/cuda").glob("*.cu"))
    session.run("build", Command("torch-free smoke program", [
        "nvcc", "-std=c++17", "-O3", "-Icsrc/include", "-gencode", f"arch=compute_{arch},code=sm_{arch}",
        "csrc/smoke/cuda.cu", *kernels, "-o", smoke], {}), deadline)
    if session.dry_run:
        return None
    session.run("build", Command("smoke program runs", [smoke], {}, None, _last_line), deadline)
    probe = ("from vtkernels import _dispatch as d; r = {b: d.refusal(b, t) for b, t in "
             "(('cpu', 'cpu'), ('triton', 'cuda'), ('cuda', 'cuda'))}; print(r); raise SystemExit(any(r.values()))")
    return session.run("build", Command("every backend loads", [sys.executable, "-c", probe], {}), deadline)


def _pytest(step: str, words: list[str], env: dict[str, str]) -> Command:
    def judge(code: int, output: str) -> str | None:
        if code:
            return f"pytest exit code {code}: {_last_line(output)}"
        return None if re.search(r"\d+ (passed|tests? collected)|\d+/\d+ tests collected", output) else "no test ran"

    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    return Command(step, words, env, judge, _last_line)


def _last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1].strip("= ") if lines else "no output"


def test(session: Session, deadline: float) -> None:
    """The GPU suite on every backend, and beside it the whole CPU suite as CI sees it, without the GPU."""
    try:
        import pytest  # noqa: F401
    except ImportError:
        return session.record("test", "pytest", "failed", detail="this Python has no pytest, which the suite needs")
    others = sorted(p.name for p in (environment.ROOT / "tests").glob("test_*.py") if p.name != "test_gpu.py")
    if session.dry_run:
        print(f"  would run: the GPU suite in {len(GPU_TESTS)} processes, and without the GPU: {', '.join(others)}")
        collect = _pytest("GPU suite, collected only", ["tests/test_gpu.py", "--collect-only"], {})
        return session.run("test", collect, deadline)
    commands = [_pytest(f"GPU suite, {names}", ["tests/test_gpu.py", "-k", names], {}) for names in GPU_TESTS]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
    commands += [_pytest(f"CPU suite, {n}", [f"tests/{n}", "-m", "not long and not gpu"], hidden) for n in others]
    return side_by_side(session, "test", commands, deadline, (os.cpu_count() or 4) // 2)


def sanitize(session: Session, deadline: float) -> None:
    """The four tools of compute-sanitizer, side by side, over the hostile samples on both GPU backends."""
    tool = shutil.which("compute-sanitizer", path=session.env["PATH"])
    program = [sys.executable, "-m", "benchmarks.sanitize_target"]
    backends = "reference" if session.dry_run else "triton,cuda"

    def judge(code: int, output: str) -> str | None:
        for backend in backends.split(","):
            if not re.search(rf"^{backend}: [1-9]\d* calls", output, re.MULTILINE):
                return f"the {backend} samples did not run to their end"
        return f"exit code {code}: {_last_line(output)}" if code else None

    if session.dry_run:
        print("  would run: compute-sanitizer --tool " + " | ".join(SANITIZERS))
        words = [*program, "--device", "cpu", "--backends", backends]
        return session.run("sanitize", Command("the samples, without a tool", words, {}, judge, _last_line), deadline)
    if tool is None:
        return session.record("sanitize", "compute-sanitizer", "skipped", detail="compute-sanitizer is not on PATH")
    # Every tensor its own allocation: an access past one is then an access past memory.
    separate = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    commands = [Command(name, [tool, "--tool", name, "--error-exitcode", "9", "--print-limit", "20", *program,
                               "--backends", backends], separate, judge, _last_line) for name in SANITIZERS]
    return side_by_side(session, "sanitize", commands, deadline, len(commands))


def bench(session: Session, deadline: float) -> None:
    """The benchmark suite, alone on the machine."""
    words = [sys.executable, "-m", "benchmarks.run", "--device", session.device, "--save", str(session.results)]
    if session.dry_run:
        words += ["--quick"]
    else:
        words += ["--seconds", "0.5", "--budget", f"{max(10.0, deadline - time.monotonic() - 40):.0f}"]
    if session.commit:
        words += ["--commit", session.commit]
    session.run("bench", Command("the suite", words, {}, None, _last_line), deadline)
    for line in (session.logs / "bench-the-suite.log").read_text(errors="replace").splitlines():
        if not session.dry_run or line.startswith("prune_topk"):
            print(f"  {line}")


PARTS = {"build": build, "test": test, "sanitize": sanitize, "bench": bench}


def refusal(dry_run: bool) -> str | None:
    """Why the driver cannot run here."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
        return f"torch is {torch.__version__}, at least 2.10 is needed"
    if dry_run:
        return None
    if not torch.cuda.is_available():
        return "torch sees no CUDA device (try --dry-run for the steps that need none)"
    if torch.version.hip:
        return "this is a ROCm build of torch; the driver is for NVIDIA GPUs"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when every step passed or was skipped with a reason, 1 when one did not, 2 where it cannot run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part (may be repeated)")
    parser.add_argument("--dry-run", action="store_true", help="go through every step that needs no GPU")
    parser.add_argument("--results", type=Path, help="folder of the results (benchmarks/results)")
    parser.add_argument("--commit", help="commit to record where there is no git")
    options = parser.parse_args(argv)
    reason = refusal(options.dry_run)
    if reason:
        print(f"make gpu: {reason}", file=sys.stderr)
        return 2
    begin = time.monotonic()
    session = Session(options.dry_run, options.results, options.commit)
    parts = options.part or list(PARTS)
    words = ["python", "-m", "benchmarks.gpu", *(w for p in options.part or [] for w in ("--part", p))]
    command = " ".join([*words, *(["--dry-run"] if options.dry_run else [])])
    facts = environment.describe(session.device, command, options.commit)
    print(environment.header(facts))
    deadline = begin
    for part in parts:
        deadline += SECONDS[part]  # what an earlier part leaves over goes to the later ones
        left = deadline - time.monotonic()
        print(f"\n{part}{' (dry run)' if session.dry_run else ''}: at most {left:.0f} s", flush=True)
        PARTS[part](session, deadline)

    total = time.monotonic() - begin
    folder = session.results / facts["device_slug"]
    folder.mkdir(parents=True, exist_ok=True)
    record = {**facts, "seconds": round(total, 1), "dry_run": session.dry_run,
              "steps": [asdict(o) for o in session.outcomes]}
    (folder / "make_gpu.json").write_text(json.dumps(record, indent=1) + "\n")
    bad = [o for o in session.outcomes if o.status in ("failed", "unfinished")]
    print(f"\n{'part':9} {'status':10} {'seconds':>7}  step")
    for o in session.outcomes:
        print(f"{o.part:9} {o.status:10} {o.seconds:7.1f}  {o.step}{': ' + o.detail if o.detail else ''}")
    print(f"{len(session.outcomes) - len(bad)} of {len(session.outcomes)} steps passed or skipped, {total:.0f} s"
          f"{', dry run' if session.dry_run else ''}")
    shutil.rmtree(session.logs, ignore_errors=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
