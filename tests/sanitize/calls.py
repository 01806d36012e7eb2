"""`python -m tests.sanitize.calls [OP ...] [--fuzz N]`: every sample and drawn case of each op on the CPU kernels.

Runs in a process that a sanitizer watches. Prints a digest of all outputs, by which two runs are compared.
"""

import argparse
import hashlib
import sys

import torch

from vtkernels import _native, testing

from ..fuzz.judge import GENERATORS, Outcome, _tensors, sample_of
from ..fuzz.known import known_reason


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize.calls", description=__doc__)
    parser.add_argument("ops", nargs="*", metavar="OP")
    parser.add_argument("--fuzz", type=int, default=20)
    parser.add_argument("--widest", type=int, default=10_000, help="elements of the largest sample that runs")
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    digest, calls = hashlib.sha256(), 0
    for op in options.ops or GENERATORS:
        drawn = (sample_of(op, seed)[0] for seed in range(options.fuzz))
        for sample in [*testing.SAMPLES[op](), *(s for s in drawn if known_reason(op, s) is None)]:
            if sum(t.numel() for t in _tensors([*sample.args, *sample.kwargs.values()])) > options.widest:
                continue
            outcome = Outcome(op, "cpu", sample)
            calls += 1
            for t in _tensors([outcome.outputs, *outcome.args]):
                digest.update(testing.bytes_of(t).tobytes())
    print(f"{calls} calls on {_native.path('_C_cpu')}, digest {digest.hexdigest()[:16]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
