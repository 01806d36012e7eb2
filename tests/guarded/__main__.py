"""`python -m tests.guarded [OP ...] [--backend cpu] [--fuzz N] [--plant DEFECT] [-v]`: every call in guarded memory.

With -v each call is named before it is made: the last line of a process that a fault killed names it. `--plant` runs a
call with a defect that must be found.
"""

import argparse
import ctypes
import sys
from typing import Any

import torch

from vtkernels import testing

from ..fuzz.judge import GENERATORS, sample_of
from ..fuzz.known import known_reason
from ..reliability import record
from .calls import check
from .memory import EDGES, Guarded


def _samples(op: str, everything: bool, fuzz: int) -> Any:
    if everything:
        yield from testing.SAMPLES[op]()
    for seed in range(fuzz):
        sample, _ = sample_of(op, seed)
        if known_reason(op, sample) is None:
            yield sample._replace(name=f"fuzz-{seed}")


def _claim(t: torch.Tensor, edge: str, length: int) -> torch.Tensor:
    """The memory of a guarded vector, as one that is longer than it by one element, behind or before it."""
    one = Guarded(t, edge)
    begin = one.tensor.storage_offset() * 4 + (one.tensor.data_ptr() - one.address) - (4 if edge == "before" else 0)
    return torch.frombuffer(one._memory, dtype=t.dtype, count=length, offset=begin)


def plant(defect: str) -> None:
    """A kernel reads or writes one element too many; what comes after this must not be reached."""
    scores = testing.rand(64)
    sample = testing.Sample("", (scores.view(1, 64), 64), {})
    if defect.startswith("read"):
        longer = _claim(scores, defect.removeprefix("read-"), 65)
        print("planted", flush=True)
        testing.run("select_topk", "cpu", longer.view(1, 65), 5)
    elif defect.startswith("write"):
        edge = defect.removeprefix("write-")
        longer = _claim(torch.zeros(64, dtype=torch.int32), edge, 65)
        print("planted", flush=True)
        testing.run("select_topk.out", "cpu", testing.rand(1, 65), 65, out=longer.view(1, 65))
    elif defect == "input-written":
        def writes(name: str, backend: str, given: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            print("planted", flush=True)
            given.fill_(0)
        check("select_topk", "cpu", sample, "after", writes)
    elif defect == "canary":
        def beside(name: str, backend: str, *args: Any, out: torch.Tensor) -> None:
            testing.run(name, backend, *args, out=out)
            ctypes.c_uint8.from_address(out.data_ptr() - 8).value = 1
        check("select_topk", "cpu", sample, "after", beside)
    elif defect == "unwritten":
        def lazy(name: str, backend: str, *args: Any, out: torch.Tensor) -> None:
            kept = out[0, -1].clone()
            testing.run(name, backend, *args, out=out)
            out[0, -1] = kept
        check("select_topk", "cpu", sample, "after", lazy)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.guarded", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--fuzz", type=int, default=0, help="drawn cases of each op")
    parser.add_argument("--no-samples", action="store_true", help="drawn cases only")
    parser.add_argument("--record", action="store_true", help="put the figure into docs/reliability.json")
    parser.add_argument("-v", "--verbose", action="store_true", help="name each call before it is made")
    parser.add_argument("--plant", help="read-before, read-after, write-before, write-after, input-written, canary, "
                                        "unwritten")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.plant:
        plant(options.plant)
        return 0
    calls = 0
    for op in options.ops or GENERATORS:
        for sample in _samples(op, not options.no_samples, options.fuzz):
            for edge in EDGES:
                if options.verbose:
                    print(op, sample.name, edge, flush=True)
                check(op, options.backend, sample, edge)
                calls += 2
    figure = f"{calls} guarded calls of {len(options.ops or GENERATORS)} ops on {options.backend}: nothing found"
    print(figure)
    if options.record:
        record(f"guarded memory, {options.backend}", figure, f"python -m tests.guarded {' '.join(sys.argv[1:])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
