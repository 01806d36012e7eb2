"""`python -m tests.sanitize [address] [thread] [--scratch DIR]`: the native CPU library under the sanitizers.

Each job builds the library once (only what changed, in later runs), runs every op on it, and then builds it again with
defects planted, each of which must be reported: a sanitizer that reports nothing proves nothing.

address: AddressSanitizer and UndefinedBehaviorSanitizer, with the test files of the ops.
thread:  ThreadSanitizer, torch's threads replaced by ones that it understands; the outputs must be those of one thread.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ..reliability import record, suite_figure
from .build import ROOT, compile_objects, cpu_sources, link
from .plants import PLANTS

NOT_ASKED = {
    "detect_leaks=0": "the interpreter never frees all that it allocates",
    "detect_odr_violation=0": "torch loads one library under two names",
    "-fno-sanitize=nonnull-attribute": "memcpy of no bytes from the null pointer of an empty tensor is defined now "
                                       "(C2y, N3322), and one of any bytes ends the process",
}
FLAGS = {
    "address": ("-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
                "-fno-sanitize=nonnull-attribute"),
    "thread": ("-O1", "-g1", "-fsanitize=thread"),
}
# Beside the samples, which all run: bad arguments, buffers and metadata of the files' own.
TESTS = ("test_bad_input", "test_gather", "test_paged", "test_prune_topk", "test_select_segments", "test_select_topk")


def runtime(name: str) -> str:
    found = [subprocess.run(["gcc", f"-print-file-name={library}"], capture_output=True, text=True).stdout.strip()
             for library in (f"lib{name}.so", "libstdc++.so.6")]
    if not Path(found[0]).is_absolute():
        raise SystemExit(f"sanitize: gcc has no lib{name}.so, allowed: a gcc with its sanitizers")
    return " ".join(found)


def environment(sanitizer: str, tree: Path) -> dict[str, str]:
    common = {**os.environ, "PYTHONPATH": str(tree), "PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "2",
              "VTKERNELS_BACKEND": "cpu"}
    if sanitizer == "address":
        return {**common, "LD_PRELOAD": runtime("asan"), "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
                "UBSAN_OPTIONS": "print_stacktrace=1"}
    return {**common, "LD_PRELOAD": runtime("tsan"), "TSAN_OPTIONS": "exitcode=66:halt_on_error=0",
            "OMP_NUM_THREADS": "1"}


def make_tree(scratch: Path) -> Path:
    """The package and the tests, beside the library that is built for them."""
    tree = scratch / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for folder in ("vtkernels", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def run(sanitizer: str, tree: Path, *command: str, **extra: str) -> subprocess.CompletedProcess:
    # The real interpreter: a shim that is a shell script would be watched in its place. Without address randomisation,
    # which the thread sanitizer's map of memory does not stand.
    python = os.path.realpath(sys.executable)
    site = ":".join([str(tree), *(p for p in sys.path if p.endswith("site-packages"))])
    return subprocess.run(["setarch", "-R", python, *command], cwd=tree, capture_output=True, text=True,
                          env={**environment(sanitizer, tree), "PYTHONPATH": site, **extra})


def fail(what: str, done: subprocess.CompletedProcess) -> None:
    report = re.search(r"(?s)(\S+: runtime error:|==\d+==ERROR:|WARNING: ThreadSanitizer:).*", done.stderr)
    text = report[0][:5000] if report else done.stderr[-5000:]
    raise SystemExit(f"sanitize: {what} (exit {done.returncode})\n{done.stdout[-3000:]}\n{text}")


def calls(sanitizer: str, tree: Path, *arguments: str, **extra: str) -> str:
    done = run(sanitizer, tree, "-m", "tests.sanitize.calls", *arguments, **extra)
    if done.returncode or "Sanitizer" in done.stderr or "runtime error" in done.stderr:
        fail(f"{sanitizer}: a report, or a failure", done)
    return done.stdout.strip().splitlines()[-1]


# A few rows are not worth a thread. For the thread sanitizer they are.
GRAIN = ("csrc/include/vtkernels/cpu.h", "if (run == nullptr || count <= grain) return body",
         "if (run == nullptr || count <= 1) return body")


def make_sources(sanitizer: str, scratch: Path) -> Path:
    """The folder of the sources that are compiled."""
    if sanitizer != "thread":
        return ROOT
    root = scratch / "sources"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", root / "csrc")
    (root / "tests/sanitize").mkdir(parents=True)
    shutil.copy2(ROOT / "tests/sanitize/threads.cpp", root / "tests/sanitize")
    replace(root / GRAIN[0], *GRAIN[1:])
    return root


def replace(file: Path, code: str, replacement: str, keep_time: bool = True) -> None:
    text, stat = file.read_text(), file.stat()
    if text.count(code) != 1:
        raise SystemExit(f"sanitize: {code!r} stands {text.count(code)} times in {file}, allowed: once")
    file.write_text(text.replace(code, replacement))
    if keep_time:
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def planted(sanitizer: str, scratch: Path, tree: Path, root: Path, objects: dict[str, Path], extra: list[Path]) -> int:
    found = 0
    for plant in (p for p in PLANTS if p.sanitizer == sanitizer):
        changed = scratch / "planted"
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(root / "csrc", changed / "csrc")
        replace(changed / plant.file, plant.code, plant.replacement, keep_time=False)
        (built,) = compile_objects(changed, [plant.file], scratch / "planted-objects", FLAGS[sanitizer])
        others = [path for source, path in objects.items() if source != plant.file]
        link([built, *others, *extra], tree / "vtkernels/_C_cpu.so", FLAGS[sanitizer])
        done = run(sanitizer, tree, "-m", "tests.sanitize.calls", plant.op, "--fuzz", "0")
        if plant.report not in done.stderr or done.returncode == 0:
            fail(f"{sanitizer} did not report the planted defect {plant.name!r}", done)
        found += 1
        print(f"  planted: {plant.name}: reported", flush=True)
    return found


def job(sanitizer: str, scratch: Path, drawn: str) -> str:
    begin = time.perf_counter()
    tree, root, flags = make_tree(scratch), make_sources(sanitizer, scratch), FLAGS[sanitizer]
    sources = cpu_sources(ROOT)
    objects = dict(zip(sources, compile_objects(root, sources, scratch / "objects", flags), strict=True))
    extra: list[Path] = []
    if sanitizer == "thread":
        extra = compile_objects(root, ["tests/sanitize/threads.cpp"], scratch / "objects", flags)
    link([*objects.values(), *extra], tree / "vtkernels/_C_cpu.so", flags)
    print(f"{sanitizer}: {len(objects)} objects after {time.perf_counter() - begin:.0f} s", flush=True)
    line = calls(sanitizer, tree, "--fuzz", drawn)
    print(f"  {line}", flush=True)
    if sanitizer == "thread":
        alone = calls(sanitizer, tree, "--fuzz", drawn, VTKERNELS_SANITIZE_THREADS="1")
        if alone != line:
            raise SystemExit(f"sanitize: four threads give other bytes than one: {line}; {alone}")
    else:
        done = run(sanitizer, tree, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "cpu", "--capture=sys",
                   *(f"tests/{name}.py" for name in TESTS))
        if done.returncode or "Sanitizer" in done.stderr:
            fail("address: the tests of the ops", done)
        figure = suite_figure(done.stdout)
        line += f"; tests: {figure}"
        print(f"  {figure}", flush=True)
    found = planted(sanitizer, scratch, tree, root, objects, extra)
    line = re.sub(r" on \S+, digest \w+", "", line)
    return f"{sanitizer}: 0 reports in {line}; {found} of {found} planted defects reported"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", default=[], help="address, thread; both by default")
    parser.add_argument("--scratch", type=Path, default=ROOT / "build/sanitize")
    parser.add_argument("--drawn", default="20", help="drawn cases of each op")
    parser.add_argument("--record", action="store_true", help="put the figures into docs/reliability.json")
    options = parser.parse_args()
    unknown = set(options.jobs) - set(FLAGS)
    if unknown:
        parser.error(f"JOB is {', '.join(sorted(unknown))}, allowed: {', '.join(FLAGS)}")
    summaries = {name: job(name, options.scratch / name, options.drawn) for name in options.jobs or FLAGS}
    print("\n".join(f"not asked of address, {option}: {why}" for option, why in NOT_ASKED.items()))
    print("\n".join(summaries.values()))
    for name, summary in summaries.items() if options.record else ():
        record(f"sanitizers, {name}", summary, "make sanitize")
    return 0


if __name__ == "__main__":
    sys.exit(main())
