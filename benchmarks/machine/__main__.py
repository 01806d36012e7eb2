"""`python -m benchmarks.machine`: run the built micro-benchmarks and torch's copy and product, and keep the figures."""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import environment, programs, timing

Figures = dict[str, dict[str, Any]]
LINE = re.compile(r"^(\w+) ([-+.\de]+) (\S+)$")


def parse(output: str) -> Figures:
    """Lines `name value unit` of a program."""
    return {m[1]: {"value": float(m[2]), "unit": m[3]} for line in output.splitlines() if (m := LINE.match(line))}


def measure(arch: str) -> Figures:
    figures: Figures = {}
    for source in programs.MACHINE:
        program = programs.target(source, arch)
        if not program.exists():
            subprocess.run(programs.command(source, arch), cwd=environment.ROOT, check=True)
        done = subprocess.run([program], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{program.name} ended with {done.returncode}: {(done.stdout + done.stderr).strip()}")
        figures |= parse(done.stdout)
    figures["torch_copy"] = {"value": timing.copy_rate("cuda"), "unit": "B/s"}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = f"torch_product_{str(dtype).removeprefix('torch.')}"
        figures[name] = {"value": timing.matrix_rate("cuda", dtype), "unit": "FLOP/s"}
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 without a device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machine", description=__doc__.splitlines()[0])
    parser.add_argument("--save", type=Path, default=environment.RESULTS, help="folder of the results")
    parser.add_argument("--commit", help="commit to record where there is no git")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("machine: torch sees no CUDA device", file=sys.stderr)
        return 2
    facts = environment.describe("cuda", "python -m benchmarks.machine", options.commit)
    figures = measure("sm_" + "".join(map(str, torch.cuda.get_device_capability())))
    path = options.save / facts["device_slug"] / "machine.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "figures": figures}, indent=1) + "\n")
    for name, figure in figures.items():
        print(f"{name:24} {figure['value']:12.4g} {figure['unit']}")
    print(f"{len(figures)} figures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
