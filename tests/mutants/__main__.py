"""`python -m tests.mutants [--only TEXT] [--jobs N] [--budget SECONDS]`: is each small defect found by a test?

Each mutant is put into a copy of the tree, the objects that include the changed file are compiled anew, and its tests
run until the first fails. All of its code has to stand in the tree once, or nothing runs. The last lines are the score,
the survivors and why they survive.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Lock

from ..reliability import record
from ..sanitize.build import ROOT, BuildError
from . import cpu_compact, cpu_score, cpu_select, cuda_kernels, host, triton_kernels
from .libraries import CPU, SHIM, library_of
from .mutant import Mutant
from .places import Place, make_places, spread

MUTANTS = (*cpu_score.MUTANTS, *cpu_select.MUTANTS, *cpu_compact.MUTANTS, *cuda_kernels.MUTANTS, *host.MUTANTS,
           *triton_kernels.MUTANTS)
KILLED, SURVIVED = "killed", "survived"


def misplaced() -> list[str]:
    """Mutants whose code does not stand in the tree once."""
    found = ((m, (ROOT / m.file).read_text().count(m.code)) for m in MUTANTS)
    return [f"{m.id}: its code stands {count} times in {m.file}" for m, count in found if count != 1]


class Bench:
    """Puts mutants into places and runs their tests there."""

    def __init__(self, mutants: list[Mutant], threads: int, limit: float):
        self.threads, self.limit = threads, limit
        self.locks = {m.tests: Lock() for m in mutants}
        self.sound: set[tuple[str, ...]] = set()

    def pytest(self, mutant: Mutant, tree: Path, limit: float | None = None) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(self.threads)}
        if mutant.file.endswith("triton.py"):
            environment["TRITON_INTERPRET"] = "1"
        if library_of(mutant.file) is SHIM:
            environment["VTKERNELS_TEST_SHIM"] = str(tree / SHIM.path)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=limit)
        if done.returncode in (3, 4, 5):  # no tests ran
            raise SystemExit(f"mutate: pytest ended with {done.returncode} for {mutant.id}\n{done.stdout}{done.stderr}")
        return done

    def check_sound(self, mutant: Mutant, tree: Path) -> None:
        """Tests that fail in any case kill nothing."""
        with self.locks[mutant.tests]:
            if mutant.tests in self.sound:
                return
            clean = self.pytest(mutant, tree)
            if clean.returncode:
                raise SystemExit(f"mutate: the tests of {mutant.id} fail without it\n{clean.stdout[-4000:]}")
            self.sound.add(mutant.tests)

    def run(self, mutant: Mutant, place: Place) -> tuple[str, str]:
        """Killed or survived, and by what."""
        self.check_sound(mutant, place.tree)
        file, library = place.tree / mutant.file, library_of(mutant.file)
        file.write_text(file.read_text().replace(mutant.code, mutant.replacement))
        try:
            if library:
                library.rebuild(mutant.file, place.clean, place.objects, place.tree, place.changed)
            done = self.pytest(mutant, place.tree, self.limit)
        except BuildError as error:
            return SURVIVED, f"does not compile: {str(error)[-800:]}"
        except subprocess.TimeoutExpired:
            return KILLED, f"still running after {self.limit:.0f} s"
        finally:
            for changed in (mutant.file, library.path) if library else (mutant.file,):
                shutil.copy2(place.clean / changed, place.tree / changed)
        if done.returncode == 0:
            return SURVIVED, mutant.survives or "not explained"
        if done.returncode in (-signal.SIGKILL, -signal.SIGTERM):
            return SURVIVED, f"its tests were ended from outside, by signal {-done.returncode}"
        named = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return KILLED, (named or [f"ended by signal {-done.returncode}"])[0][:150]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutants with this in their file or name")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="mutants at a time")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no further one begins")
    parser.add_argument("--limit", type=float, default=900, help="seconds after which the tests of one hang")
    parser.add_argument("--scratch", type=Path, default=ROOT / "build/mutants")
    parser.add_argument("--record", action="store_true", help="put the score into docs/reliability.json")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}, allowed: 1 or more")
    if wrong := misplaced():
        raise SystemExit("mutate: " + "\n".join(wrong))
    chosen = [m for m in MUTANTS if options.only in f"{m.file}: {m.name}"]
    if options.budget < float("inf"):
        random.Random(0).shuffle(chosen)  # so that the ones in time are of all kinds
    begin = time.monotonic()
    places = make_places(options.scratch.resolve(), options.jobs, {CPU, *(library_of(m.file) or CPU for m in chosen)})
    bench = Bench(chosen, 2 if options.jobs == 1 else 1, options.limit)

    def run(mutant: Mutant, place: Place) -> tuple[str, str] | None:
        return None if time.monotonic() - begin > options.budget else bench.run(mutant, place)

    came: dict[str, tuple[str, str]] = {}
    for mutant, outcome in spread(chosen, places, run):
        if outcome:
            came[mutant.id] = outcome
            print(f"{outcome[0]}: {mutant.id}: {outcome[1]}", flush=True)
    outcomes = {m.id: came[m.id] for m in chosen if m.id in came}
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
