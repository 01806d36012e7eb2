"""`python -m tests.covered [--scratch DIR] [--record] [TEST ...]`: which lines of the package do its tests run?

The CPU library is built with gcov's counters into a copy of the tree, and the suite runs on it under coverage.py, child
processes and Triton's interpreter included. Printed last: the lines that no test runs, the checks of arguments that no
test has seen fail, and both figures. Below 95 % of the lines, or with a check that never failed, it ends with 1.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..reliability import record, suite_figure
from ..sanitize.build import ROOT, compile_objects, cpu_sources, link
from . import native, sites

FLAGS = ("-O1", "--coverage", "-fprofile-update=prefer-atomic")
NEEDED = 95.0
# They run no line of the package that other tests do not: they compile, build, or need a GPU.
LEFT_OUT = ("test_benchmarks", "test_cpp_engine", "test_cuda_build", "test_cuda_sanitizers", "test_cuda_shim",
            "test_cuda_shim_attention", "test_gpu", "test_hub", "test_mutants", "test_native_build", "test_soak",
            "test_supply", "test_triton_aot", "test_wheel_hash")
CONFIG = """\
[run]
source = {tree}/vtkernels
parallel = true
patch =
    subprocess
    _exit
sigterm = true
data_file = {scratch}/data/coverage
disable_warnings = no-data-collected, module-not-imported, already-imported, couldnt-parse, ctrace-unavailable
[report]
exclude_also =
    raise NotImplementedError
    if TYPE_CHECKING:
    \\.\\.\\.$
"""


def make_tree(scratch: Path) -> Path:
    tree = scratch / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    ignore = shutil.ignore_patterns("*.so", "__pycache__", ".git", ".venv*", "build", ".*_cache", "demo_out")
    shutil.copytree(ROOT, tree, ignore=ignore, copy_function=shutil.copy2)
    # An older file stays older than its object, so that a second run compiles what changed.
    times = (tree / "csrc/torch/tensor.h").stat()
    native.log_checks(tree / "csrc/torch/tensor.h")
    os.utime(tree / "csrc/torch/tensor.h", ns=(times.st_atime_ns, times.st_mtime_ns))
    return tree


def build(tree: Path, scratch: Path) -> Path:
    objects = scratch / "objects"
    link(compile_objects(tree, cpu_sources(tree), objects, FLAGS), tree / "vtkernels/_C_cpu.so", ("--coverage",))
    for counted in objects.glob("*.gcda"):
        if counted.stat().st_mtime < counted.with_suffix(".gcno").stat().st_mtime:
            counted.unlink()  # of an object that was compiled anew since
    return objects


def run_tests(tree: Path, scratch: Path, tests: list[str]) -> None:
    """A file a process, since torch.compile takes the trace function away, and two processes at a time. No workers of
    pytest-xdist: they end without writing gcov's counters."""
    (scratch / "data").mkdir(exist_ok=True)
    config, log = scratch / "coveragerc", scratch / "data/checks.txt"
    config.write_text(CONFIG.format(tree=tree, scratch=scratch))
    environment = {**os.environ, "PYTHONPATH": str(tree), "VTKERNELS_CHECK_LOG": str(log), "OMP_NUM_THREADS": "2",
                   "OMP_WAIT_POLICY": "passive"}
    files = tests or [str(p.relative_to(tree)) for p in sorted((tree / "tests").rglob("test_*.py"))
                      if p.stem not in LEFT_OUT and p.parent.name not in ("interpreted", "vllm_engine")]

    def run_one(file: str) -> str:
        command = [sys.executable, "-m", "coverage", "run", f"--rcfile={config}", "-m", "pytest", "-q", "-p",
                   "no:cacheprovider", file]
        done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True)
        print(f"{file}: {suite_figure(done.stdout)}", flush=True)
        nothing = done.returncode == 5 and not tests  # a file whose tests are all of make test-long
        return "" if done.returncode == 0 or nothing else f"{done.stdout[-4000:]}\nended with {done.returncode}"

    with ThreadPoolExecutor(2) as pool:
        failed = [text for text in pool.map(run_one, files) if text]
    if failed:
        raise SystemExit("coverage: the tests fail\n" + "\n".join(failed))


def host_lines(tree: Path, scratch: Path) -> dict[str, tuple[int, list[int]]]:
    """Statements of each file of the package, and the lines of those that did not run."""
    rc, out = f"--rcfile={scratch / 'coveragerc'}", scratch / "host.json"
    for command in (["combine", "--append", "-q", str(scratch / "data")], ["json", "-q", "-o", str(out)]):
        subprocess.run([sys.executable, "-m", "coverage", command[0], rc, *command[1:]], cwd=tree, check=True,
                       stdout=subprocess.DEVNULL)
    files = json.loads(out.read_text())["files"]
    return {name: (file["summary"]["num_statements"], file["missing_lines"]) for name, file in sorted(files.items())}


def spans(numbers: list[int]) -> str:
    """12, 13, 14, 20 as 12-14, 20."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1][-1:] = [parts[-1][-1], n] if len(parts[-1]) == 1 else [n]
        else:
            parts.append([n])
    return ", ".join("-".join(map(str, p)) for p in parts)


def share(files: dict[str, tuple[int, list[int]]]) -> tuple[str, float]:
    total = sum(count for count, _ in files.values())
    missed = sum(len(lines) for _, lines in files.values())
    percent = 100 * (total - missed) / max(1, total)
    return f"{percent:.2f} % of {total} lines", percent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.covered", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", metavar="TEST", help="for pytest; the suite by default")
    parser.add_argument("--scratch", type=Path, default=ROOT / "build/covered")
    parser.add_argument("--append", action="store_true", help="add to what earlier runs on the same sources counted")
    parser.add_argument("--record", action="store_true", help="put the figures into docs/reliability.json")
    options = parser.parse_args()
    scratch = options.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    if not options.append:
        shutil.rmtree(scratch / "data", ignore_errors=True)
        for old in (scratch / "objects").glob("*.gcda"):
            old.unlink()
    tree = make_tree(scratch)
    objects = build(tree, scratch)
    run_tests(tree, scratch, options.tests)
    host = host_lines(tree, scratch)
    counted = native.lines(objects, tree)
    cpu = {name: (len(of), sorted(n for n, count in of.items() if not count)) for name, of in sorted(counted.items())}
    for name, (_, missed) in {**host, **cpu}.items():
        if missed:
            print(f"not run: {name}: {spans(missed)}")
    raised, silent = sites.unraised(tree, {name: missed for name, (_, missed) in host.items()})
    checks, unfailed = native.unfailed_checks(tree, scratch / "data/checks.txt")
    for place in (*silent, *unfailed):
        print(f"never failed: {place}")
    (host_text, host_share), (cpu_text, cpu_share) = share(host), share(cpu)
    figures = {
        "coverage, Python": host_text,
        "coverage, C++ of the CPU": cpu_text,
        "checks seen to fail": f"{raised - len(silent)} of {raised} in Python, "
                               f"{checks - len(unfailed)} of {checks} in C++",
    }
    for what, figure in figures.items():
        print(f"{what}: {figure}")
        if options.record:
            record(what, figure, "make coverage")
    return 0 if min(host_share, cpu_share) >= NEEDED and not silent and not unfailed else 1


if __name__ == "__main__":
    sys.exit(main())
