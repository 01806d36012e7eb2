"""`make gpu`: build, test, sanitize and benchmark on an NVIDIA GPU, inside ten minutes, without network.

Every part has a share of the time. A step that runs out of it is unfinished, which is not a pass; run again, and what
passed on the same sources and device is kept, so that the rest gets the time. `--part` runs one part alone with all of
it. Without a GPU: `--dry-run` goes through every step that needs none.
"""

import argparse
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from . import environment, programs, report
from .session import Command, Session, last_line, tree

SECONDS = {"build": 150, "test": 180, "sanitize": 75, "bench": 180}
TOTAL = 570  # ten minutes, less starting and ending
SANITIZERS = {"memcheck": r"Invalid __global__ write", "racecheck": r"hazard|[Rr]ace reported",
              "initcheck": r"Uninitialized __global__ memory read", "synccheck": r"[Dd]ivergent thread|Barrier error"}
FOUND = 9  # exit code of a tool that found something
# Test processes side by side; Triton compiles a kernel for each new kind of arguments, so its share is split.
GPU_TESTS = ("triton and prune_topk and not prune_topk_varlen", "triton and prune_topk_varlen", "triton and not prune",
             "not triton")


def architecture(session: Session) -> str:
    return "sm_90" if session.dry_run else "sm_" + "".join(map(str, torch.cuda.get_device_capability()))


def _program(session: Session, source: str, step: str) -> Command:
    folder = session.logs if session.dry_run else programs.BUILT
    folder.mkdir(parents=True, exist_ok=True)
    arch = architecture(session)
    made = [] if session.dry_run else [programs.target(source, arch)]
    return Command(step, programs.command(source, arch, folder), {}, makes=made)


def build(session: Session, deadline: float) -> None:
    """Both native libraries in place, for this GPU alone, and proof that both load; the programs beside them."""
    if programs.find_nvcc() is None:
        return session.record("build", "nvcc", "failed", detail="nvcc is neither on PATH nor under CUDA_HOME")
    arch = architecture(session)
    words, made = [sys.executable, "setup.py", "build_ext"], []
    if session.dry_run:
        words += ["--build-lib", str(session.logs / "lib"), "--build-temp", str(session.logs / "temp")]
    else:
        words += ["--inplace"]
        made = [environment.ROOT / "vtkernels" / f"{name}.so" for name in ("_C_cpu", "_C_cuda")]
    commands = [Command(f"_C_cpu and _C_cuda for {arch}", words,
                        {"VTKERNELS_BUILD_NATIVE": "1", "VTKERNELS_CUDA_ARCHS": arch[3:]}, makes=made),
                _program(session, programs.SMOKE, "torch-free smoke program"),
                _program(session, programs.PLANTED, "planted bugs")]
    commands += [_program(session, s, f"micro-benchmark {Path(s).stem}") for s in programs.MACHINE]
    session.side_by_side("build", commands, deadline, 1 if session.dry_run else 3)
    if session.dry_run:
        return None
    smoke = str(programs.target(programs.SMOKE, arch))
    session.run("build", Command("smoke program runs", [smoke], {}, None, last_line), deadline)
    probe = ("from vtkernels import _dispatch as d; r = {b: d.refusal(b, t) for b, t in "
             "(('cpu', 'cpu'), ('triton', 'cuda'), ('cuda', 'cuda'))}; print(r); raise SystemExit(any(r.values()))")
    return session.run("build", Command("every backend loads", [sys.executable, "-c", probe], {}), deadline)


def _pytest(step: str, words: list[str], env: dict[str, str]) -> Command:
    def judge(code: int, output: str) -> str | None:
        if code:
            return f"pytest exit code {code}: {last_line(output)}"
        return None if re.search(r"\d+ (passed|tests? collected)|\d+/\d+ tests collected", output) else "no test ran"

    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    return Command(step, words, env, judge, last_line)


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
    return session.side_by_side("test", commands, deadline, (os.cpu_count() or 4) // 2)


def sanitize(session: Session, deadline: float) -> None:
    """The four tools of compute-sanitizer: each finds its planted bug; then none finds any in the torch-free smoke
    program and in the hostile samples of every op on both GPU backends."""
    tool = shutil.which("compute-sanitizer", path=session.env["PATH"])
    samples = [sys.executable, "-m", "benchmarks.sanitize_target"]
    backends = "reference" if session.dry_run else "triton,cuda"

    def complete(code: int, output: str) -> str | None:
        for backend in backends.split(","):
            if not re.search(rf"^{backend}: [1-9]\d* calls", output, re.MULTILINE):
                return f"the {backend} samples did not run to their end"
        return f"exit code {code}: {last_line(output)}" if code else None

    def planted(name: str) -> Command:
        def judge(code: int, output: str) -> str | None:
            if code != FOUND:
                return f"exit code {code}, not {FOUND}: the planted bug was not found"
            return None if re.search(SANITIZERS[name], output) else "something else was found than the planted bug"

        program = str(programs.target(programs.PLANTED, architecture(session)))
        return Command(f"{name} finds its planted bug", [*under(name), program, name], {}, judge, last_line)

    def under(name: str) -> list[str]:
        return [str(tool), "--tool", name, "--error-exitcode", str(FOUND), "--print-limit", "20"]

    if session.dry_run:
        print("  would run: compute-sanitizer --tool " + " | ".join(SANITIZERS))
        words = [*samples, "--device", "cpu", "--backends", backends]
        return session.run("sanitize", Command("the samples, without a tool", words, {}, complete, last_line), deadline)
    if tool is None:
        return session.record("sanitize", "compute-sanitizer", "skipped", detail="compute-sanitizer is not on PATH")
    _ensure(session, "sanitize", (programs.PLANTED, programs.SMOKE), deadline)
    smoke = str(programs.target(programs.SMOKE, architecture(session)))
    # Every tensor its own allocation: an access past one is then an access past memory.
    separate = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    commands = [planted(name) for name in SANITIZERS]
    commands += [Command(f"{name}, smoke program", [*under(name), smoke], {}, None, last_line) for name in SANITIZERS]
    commands += [Command(f"{name}, samples", [*under(name), *samples, "--backends", backends], separate, complete,
                         last_line) for name in SANITIZERS]
    return session.side_by_side("sanitize", commands, deadline, len(SANITIZERS))


def _ensure(session: Session, part: str, sources: Sequence[str], deadline: float) -> None:
    """Programs that the build part has not made, when a part runs alone."""
    for source in sources:
        if not programs.target(source, architecture(session)).exists():
            session.run(part, _program(session, source, f"build {Path(source).stem}"), deadline)


def bench(session: Session, deadline: float) -> None:
    """The machine first, then every shape beside the eager peers, then beside the compiled ones, alone on the machine.

    A suite that is out of time keeps what it has measured, and goes on from there when it runs again.
    """
    common = ["--save", str(session.results), *(["--commit", session.commit] if session.commit else [])]
    suite = [sys.executable, "-m", "benchmarks.run", "--device", session.device, *common]
    if session.dry_run:
        session.run("bench", Command("the suite", [*suite, "--quick"], {}, None, last_line), deadline)
        return
    _ensure(session, "bench", programs.MACHINE, deadline)
    machine = [sys.executable, "-m", "benchmarks.machine", *common]
    session.run("bench", Command("machine", machine, {}, None, last_line), deadline)
    for step, words in (("every shape, eager peers", ["--no-compiled"]), ("compiled peers", [])):
        left = max(10.0, deadline - time.monotonic() - 30)
        suite_words = [*suite, "--seconds", "0.3", "--budget", f"{left:.0f}", "--resume", *words]
        session.run("bench", Command(step, suite_words, {}, None, last_line), deadline)
    figures = environment.device_slug(session.device)
    print("\n".join(f"  {line}" for line in report.best(session.results / figures)))


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


def shares(parts: Sequence[str], total: float = TOTAL) -> dict[str, float]:
    """Seconds of each part: the whole time, divided as the parts' usual needs are."""
    return {part: total * SECONDS[part] / sum(SECONDS[p] for p in parts) for part in parts}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when every step passed, was kept or skipped with a reason, 1 when not, 2 where it cannot run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part (may be repeated)")
    parser.add_argument("--fresh", action="store_true", help="run what has passed before again, too")
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
    parts = list(dict.fromkeys(options.part or PARTS))
    words = ["python", "-m", "benchmarks.gpu", *(w for p in options.part or [] for w in ("--part", p))]
    command = " ".join([*words, *(["--dry-run"] if options.dry_run else [])])
    facts = {**environment.describe(session.device, command, options.commit), "tree": tree()}
    print(environment.header(facts))
    path = session.results / facts["device_slug"] / "make_gpu.json"
    session.resume(path, facts, parts if options.fresh else [])
    deadline = begin
    for part, seconds in shares(parts).items():
        deadline += seconds  # what an earlier part leaves over goes to the later ones
        if session.dry_run:
            deadline = math.inf  # it may compile on as few cores as there are
        left = "as long as it takes" if session.dry_run else f"at most {deadline - time.monotonic():.0f} s"
        print(f"\n{part}{' (dry run)' if session.dry_run else ''}: {left}", flush=True)
        PARTS[part](session, deadline)
        session.save(path, facts, time.monotonic() - begin)

    total = time.monotonic() - begin
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
