"""`python -m tests.fuzz [OP ...] [--cases N] [--first SEED] [--backends reference,cpu]`: more cases than the suite has.

A failure is printed with the seed that makes it again, made small, and with --keep stored in seeds.json, which the
suite replays. With -v every seed is printed before it runs, so the last one names a case that kills the process.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from ..reliability import record
from .draws import Draws
from .judge import GENERATORS, Failure, describe, judge, sample_of, smallest
from .known import known_reason

SEEDS = Path(__file__).parent / "seeds.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"all of them by default: {', '.join(GENERATORS)}")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--backends", default="reference,cpu")
    parser.add_argument("--most", type=int, default=3, help="failures of an op after which the next op begins")
    parser.add_argument("--keep", action="store_true", help="store failures in seeds.json")
    parser.add_argument("--record", action="store_true", help="put the figure into docs/reliability.json")
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    unknown = set(options.ops) - set(GENERATORS)
    if unknown:
        parser.error(f"OP is {', '.join(sorted(unknown))}, allowed: {', '.join(GENERATORS)}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # what is allocated and not written is NaN or the largest integer
    backends = tuple(options.backends.split(","))
    total = judged = 0
    for op in options.ops or GENERATORS:
        begin, failures, left_out = time.perf_counter(), 0, Counter[str]()
        for seed in range(options.first, options.first + options.cases):
            if options.verbose:
                print(op, seed, flush=True)
            sample, choices = sample_of(op, seed)
            if reason := known_reason(op, sample):
                left_out[reason] += 1
                continue
            try:
                judge(op, sample, backends)
            except Failure as failure:
                failures += 1
                _report(op, seed, choices, backends, failure, options.keep)
                if failures == options.most:
                    break
        seconds = time.perf_counter() - begin
        done = seed - options.first + 1
        print(f"{op}: {done} cases, {failures} failures, {seconds:.1f} s ({seconds / done * 1e3:.2f} ms each)",
              flush=True)
        for reason, count in left_out.items():
            print(f"  {count} not judged: {reason}")
        total += failures
        judged += done - sum(left_out.values())
    figure = f"{judged} cases of {len(options.ops or GENERATORS)} ops on {options.backends}: {total} failures"
    print(figure)
    if options.record:
        record(f"fuzzing, {options.backends}", figure, f"python -m tests.fuzz {' '.join(sys.argv[1:])}")
    return min(total, 1)


def _report(op: str, seed: int, choices: list[int], backends: tuple[str, ...], failure: Failure, keep: bool) -> None:
    small, message = smallest(op, choices, backends)
    print(f"\nFAILED {op} --first {seed} --cases 1: {str(failure)[:2000]}\nmade small: {message[:1500]}\n  "
          f"{describe(GENERATORS[op](Draws(given=small)))}\n  choices {small}\n", flush=True)
    if keep:
        stored = json.loads(SEEDS.read_text())
        stored.append({"op": op, "choices": small, "was": message.splitlines()[0][:200]})
        SEEDS.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in stored) + "\n]\n")


if __name__ == "__main__":
    sys.exit(main())
