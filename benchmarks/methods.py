"""Every method beside its usual loop, at the sizes of its paper: `python -m benchmarks.methods --save`.

Both run in float32, checked first: tokens kept by one and not by the other are at most 1 % (rounding decides near ties
differently), values of equal tokens agree. Then paired in one run.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from vtkernels import methods

from . import environment, loops, timing
from .call import Call

NEAR_TIES = 0.01


def difference(ours: methods.Result, theirs: methods.Result) -> float:
    """The share of kept tokens that differ, or, without indices, of values beyond rounding."""
    if ours.indices is not None and theirs.indices is not None:
        if ours.indices.shape != theirs.indices.shape:
            return 1.0
        same = sum(len(set(a.tolist()) & set(b.tolist())) / max(1, len(set(b.tolist())))
                   for a, b in zip(ours.indices.flatten(0, -2), theirs.indices.flatten(0, -2), strict=True))
        return 1 - same / ours.indices.flatten(0, -2).shape[0]
    shares = [float((~torch.isclose(a.double(), b.double(), rtol=1e-3, atol=1e-3 * float(b.abs().max()))).double()
                    .mean()) for a, b in _tensors(ours, theirs) if a.numel()]
    return max(shares, default=1.0)


def _tensors(ours: methods.Result, theirs: methods.Result) -> list[tuple[Any, Any]]:
    pairs = [(ours.hidden, theirs.hidden), (ours.assignment, theirs.assignment), *zip(ours.kv, theirs.kv, strict=True)]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def measure(name: str, seconds: float) -> dict[str, Any]:
    loop = loops.loop_of(name)
    method, inputs = methods.get(name, **loop.TYPICAL), loops.make(name, "typical")
    apart = difference(method(inputs), loop.loop(method, inputs))
    row = {"method": name, "shape": describe(inputs), "config": {k: str(v) for k, v in loop.TYPICAL.items()
                                                                 if isinstance(v, (int, float, str))}}
    if apart > NEAR_TIES:
        return {**row, "check": f"{apart:.1%} differs"}
    call = Call((), {}, (), "generated")
    clocks = {"ours": timing.cpu_clock(lambda _: method(inputs), call, warmup=2),
              "loop": timing.cpu_clock(lambda _: loop.loop(method, inputs), call, warmup=1)}
    samples = timing.paired(clocks, seconds, min_rounds=5)
    return {**row, "check": "ok", "ours_us": samples["ours"].median * 1e6, "loop_us": samples["loop"].median * 1e6,
            "ratio": samples["ours"].ratio_to(samples["loop"])}


def describe(inputs: methods.Inputs) -> str:
    """The tokens, or for caches the keys."""
    if inputs.hidden is not None:
        return "×".join(map(str, inputs.hidden.shape))
    layer = (*inputs.decoder, *inputs.vision)[-1]
    return "keys " + "×".join(map(str, layer.key.shape))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description="Methods beside their loops.")
    parser.add_argument("names", nargs="*", help="of methods; all when absent")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on the rounds of each method")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<device>/methods.json")
    options = parser.parse_args(argv)
    environment.cap_instruction_set()
    rows = []
    print(f"{'method':22} {'shape':24} {'ours ms':>10} {'loop ms':>10} {'loop/ours':>9}")
    for name in options.names or methods.list():
        with torch.inference_mode():
            row = measure(name, options.seconds)
        rows.append(row)
        cells = (f"{row['ours_us'] / 1e3:10.3f} {row['loop_us'] / 1e3:10.2f} {row['ratio']:8.1f}x"
                 if row["check"] == "ok" else f"no speed: {row['check']}")
        print(f"{name:22} {row['shape']:24} {cells}", flush=True)
    failed = [row["method"] for row in rows if row["check"] != "ok"]
    slower = [row["method"] for row in rows if row["check"] == "ok" and row["ratio"] < 1]
    print(f"checks failed: {', '.join(failed) or 'none'}; slower than the loop: {', '.join(slower) or 'none'}")
    if options.save:
        facts = environment.describe("cpu", "python -m benchmarks.methods --save")
        path = environment.RESULTS / facts["device_slug"] / "methods.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
