"""`python -m tests.fuzz [OP ...] [--cases N] [--first SEED] [--backends reference,cpu]`: more cases than the suite has.

The backends are reference, cpu, triton (in Triton's interpreter) and shim (the CUDA sources compiled for the CPU, of
the ops that have any). A failure is printed with the seed that makes it again, made small, and with --keep stored in
seeds.json, which the suite replays. With -v every seed is printed before it runs, so the last one names a case that
kills the process.
"""

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from vtkernels import _library

from ..cuda_shim import build
from ..reliability import record
from .judge import GENERATORS
from .worker import SHIM, fuzz, prepare

BACKENDS = ("reference", "cpu", "triton", "shim")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"all of them by default: {', '.join(GENERATORS)}")
    parser.add_argument("--cases", type=int, default=1000, help="of each op")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--backends", default="reference,cpu")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="ops at a time")
    parser.add_argument("--most", type=int, default=3, help="failures of an op after which the next op begins")
    parser.add_argument("--keep", action="store_true", help="store failures in seeds.json")
    parser.add_argument("--record", action="store_true", help="put the figure into docs/reliability.json")
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    names = options.backends.split(",")
    for what, given, allowed in (("OP", options.ops, GENERATORS), ("--backends", names, BACKENDS)):
        if unknown := set(given) - set(allowed):
            parser.error(f"{what} is {', '.join(sorted(unknown))}, allowed: {', '.join(allowed)}")
    for what, number in (("--cases", options.cases), ("--jobs", options.jobs)):
        if number < 1:
            parser.error(f"{what} is {number}, allowed: 1 or more")
    ops = options.ops or list(GENERATORS)
    if "triton" in names:
        os.environ["TRITON_INTERPRET"] = "1"  # read when the workers import Triton
    if "shim" in names:
        ops = [op for op in ops if op in _library.CUDA_OPS]
        build.torch_library(SHIM)
    backends = tuple("cuda" if name == "shim" else name for name in names)
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), prepare, (backends,)) as pool:
        results = list(pool.map(fuzz, ops, [backends] * len(ops), [options] * len(ops)))
    judged, failures = map(sum, zip(*results, strict=True))
    figure = f"{judged} cases, {options.cases} of each of {len(ops)} ops: {failures} failures"
    print(f"fuzzing, {' against '.join(names)}: {figure}")
    if options.record:
        record(f"fuzzing, {options.backends}", figure, f"python -m tests.fuzz {' '.join(sys.argv[1:])}")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
