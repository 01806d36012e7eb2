"""What a process of the fuzzer does: prepares its backends, judges the cases of an op, prints what fails."""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import torch

from vtkernels import _dispatch

from ..cuda_shim import build
from ..sanitize.build import ROOT
from .draws import Draws
from .judge import GENERATORS, Failure, describe, judge, sample_of, smallest
from .known import known_reason

SEEDS, SHIM = Path(__file__).parent / "seeds.json", ROOT / "build/fuzz"


def prepare(backends: tuple[str, ...]) -> None:
    """In one thread; what is allocated and not written is NaN or the largest integer."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if "triton" in backends:
        from .. import interpreter

        interpreter.quicken()
    if "cuda" in backends:
        torch.ops.load_library(str(build.library(SHIM)))
        _dispatch.refusal = lambda *_: None  # it refuses tensors of the CPU


def fuzz(op: str, backends: tuple[str, ...], options: argparse.Namespace) -> tuple[int, int]:
    """How many cases of an op were judged, and how many of them failed."""
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
    lines = [f"{op}: {done} cases, {failures} failures, {seconds:.1f} s ({seconds / done * 1e3:.2f} ms each)",
             *(f"  {count} not judged: {reason}" for reason, count in left_out.items())]
    print("\n".join(lines), flush=True)
    return done - sum(left_out.values()), failures


def _report(op: str, seed: int, choices: list[int], backends: tuple[str, ...], failure: Failure, keep: bool) -> None:
    small, message = smallest(op, choices, backends)
    print(f"\nFAILED {op} --first {seed} --cases 1: {str(failure)[:2000]}\nmade small: {message[:1500]}\n  "
          f"{describe(GENERATORS[op](Draws(given=small)))}\n  choices {small}\n", flush=True)
    if keep:
        stored = json.loads(SEEDS.read_text())
        stored.append({"op": op, "choices": small, "was": message.splitlines()[0][:200]})
        SEEDS.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in stored) + "\n]\n")
