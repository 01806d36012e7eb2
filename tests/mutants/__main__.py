"""`python -m tests.mutants [--only TEXT] [--budget SECONDS] [--scratch DIR]`: is each small defect found by a test?

Each mutant is put into a copy of the tree, the objects that include the changed file are compiled anew, and its tests
run until the first fails. All of its code has to stand in the tree once, or nothing runs. The last lines are the score,
the survivors and why they survive.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ..reliability import record
from ..sanitize.build import ROOT, BuildError, compile_objects, cpu_sources, is_stale, link
from . import cpu_compact, cpu_score, cpu_select, host, triton_kernels
from .mutant import Mutant

FLAGS = ("-O1",)  # the arithmetic is the same but for speed
MUTANTS = (*cpu_score.MUTANTS, *cpu_select.MUTANTS, *cpu_compact.MUTANTS, *host.MUTANTS, *triton_kernels.MUTANTS)
LIBRARY = "vtkernels/_C_cpu.so"


def misplaced() -> list[str]:
    """Mutants whose code does not stand in the tree once."""
    found = ((m, (ROOT / m.file).read_text().count(m.code)) for m in MUTANTS)
    return [f"{m.id}: its code stands {count} times in {m.file}" for m, count in found if count != 1]


def make_tree(scratch: Path) -> Path:
    tree = scratch / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for folder in ("vtkernels", "tests", "csrc", "benchmarks", "examples", "docs"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in ("pyproject.toml", "README.md", "setup.py", "CMakeLists.txt"):
        shutil.copy2(ROOT / file, tree)
    return tree


KILLED, SURVIVED = "killed", "survived"


def pytest(mutant: Mutant, tree: Path, limit: float | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "2"}
    if mutant.file.endswith("triton.py"):
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=limit)
    if done.returncode in (3, 4, 5):  # no tests ran
        raise SystemExit(f"mutate: pytest ended with {done.returncode} for {mutant.id}\n{done.stdout}{done.stderr}")
    return done


def rebuild(tree: Path, scratch: Path, sources: list[str]) -> None:
    """The library with the objects that are older than what they include compiled anew, apart from the others."""
    objects = scratch / "objects"
    of = {s: objects / (s.replace("/", "_") + ".o") for s in sources}
    stale = [s for s in sources if is_stale(of[s], tree)]
    changed = scratch / "changed"
    shutil.rmtree(changed, ignore_errors=True)
    of |= dict(zip(stale, compile_objects(tree, stale, changed, FLAGS), strict=True))
    link(list(of.values()), tree / LIBRARY)


def run(mutant: Mutant, tree: Path, scratch: Path, sources: list[str], limit: float) -> tuple[str, str]:
    """Killed or survived, and by what."""
    file = tree / mutant.file
    text, stat = file.read_text(), file.stat()
    native = mutant.file.startswith("csrc")
    file.write_text(text.replace(mutant.code, mutant.replacement))
    try:
        if native:
            try:
                rebuild(tree, scratch, sources)
            except BuildError as error:
                return SURVIVED, f"does not compile: {str(error)[-800:]}"
        try:
            done = pytest(mutant, tree, limit)
        except subprocess.TimeoutExpired:
            return KILLED, f"still running after {limit:.0f} s"
        if done.returncode == 0:
            return SURVIVED, mutant.survives or "not explained"
        named = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return KILLED, (named or [f"ended by signal {-done.returncode}"])[0][:150]
    finally:
        file.write_text(text)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutants with this in their name")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no further one begins")
    parser.add_argument("--limit", type=float, default=900, help="seconds after which the tests of one hang")
    parser.add_argument("--scratch", type=Path, default=ROOT / "build/mutants")
    parser.add_argument("--record", action="store_true", help="put the score into docs/reliability.json")
    options = parser.parse_args()
    if wrong := misplaced():
        raise SystemExit("mutate: " + "\n".join(wrong))
    chosen = [m for m in MUTANTS if options.only in m.id]
    begin = time.monotonic()
    options.scratch.mkdir(parents=True, exist_ok=True)
    tree = make_tree(options.scratch)
    sources = cpu_sources(tree)
    link(compile_objects(tree, sources, options.scratch / "objects", FLAGS), tree / LIBRARY)
    outcomes: dict[str, tuple[str, str]] = {}
    sound: set[tuple[str, ...]] = set()
    for mutant in chosen:
        if time.monotonic() - begin > options.budget:
            break
        if mutant.tests not in sound:  # tests that fail in any case kill nothing
            clean = pytest(mutant, tree)
            if clean.returncode:
                raise SystemExit(f"mutate: the tests of {mutant.id} fail without it\n{clean.stdout[-4000:]}")
            sound.add(mutant.tests)
        outcomes[mutant.id] = run(mutant, tree, options.scratch, sources, options.limit)
        if mutant.file.startswith("csrc"):
            link([options.scratch / "objects" / (s.replace("/", "_") + ".o") for s in sources], tree / LIBRARY)
        print(f"{outcomes[mutant.id][0]}: {mutant.id}: {outcomes[mutant.id][1]}", flush=True)
    killed = sum(outcome == KILLED for outcome, _ in outcomes.values())
    score = f"{killed} of {len(outcomes)} mutants killed ({100 * killed / max(1, len(outcomes)):.1f} %)"
    print(f"\n{score}, {len(chosen) - len(outcomes)} not run")
    if options.record:
        record("mutants", f"{score}, {len(MUTANTS) - len(outcomes)} not run", "make mutate")
    for name, (outcome, why) in outcomes.items():
        if outcome == SURVIVED:
            print(f"survived: {name}: {why}")
    return 0 if killed >= 0.9 * len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
