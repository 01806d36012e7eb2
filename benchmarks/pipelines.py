"""Several ops in a row beside the usual code that does the same: `python -m benchmarks.pipelines`.

Checked first, then paired in one run. `tome`: match and merge as in ToMe, 25 % of the tokens merged.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import vtkernels
from vtkernels.testing import clustered

from . import timing
from .call import Call
from .families.cluster import match_usual

SECONDS = 4.0


class Pipeline(NamedTuple):
    make: Callable[[], tuple]
    ours: Callable[..., tuple[Tensor, ...]]
    peers: dict[str, Callable[..., tuple[Tensor, ...]]]
    tolerance: float


def _tokens(n: int, d: int) -> tuple:
    return clustered(n, d, centres=n // 16, seed=5)[None], n // 4


def tome_ours(tokens: Tensor, r: int) -> tuple[Tensor, Tensor]:
    sources, targets, _, kept = vtkernels.match_bipartite(tokens, r)
    assignment = vtkernels.merge_assignment(kept, sources, targets)
    return vtkernels.merge_tokens(tokens, assignment, kept.shape[1])


def tome_usual(tokens: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Sums by scatter, with the sizes beside them; then the order of the tokens, which ToMe itself does not keep."""
    batch, n, _ = tokens.shape
    sources, targets, _, kept = match_usual(tokens, r)
    size = tokens.new_ones(batch, n, 1)

    def merged(rows: Tensor) -> Tensor:
        width = rows.shape[-1]
        moved = rows.gather(1, sources[..., None].expand(-1, -1, width))
        total = rows.scatter_reduce(1, targets[..., None].expand(-1, -1, width), moved, "sum")
        return total.gather(1, kept[..., None].expand(-1, -1, width))

    sizes = merged(size)
    return merged(tokens * size) / sizes, sizes[..., 0]


PIPELINES = {
    "tome-576x1024": Pipeline(lambda: _tokens(576, 1024), tome_ours, {"usual": tome_usual}, 1e-4),
    "tome-2880x4096": Pipeline(lambda: _tokens(2880, 4096), tome_ours, {"usual": tome_usual}, 1e-4),
}


def _run(run: Callable, call: Call) -> tuple[Tensor, ...]:
    return run(*call.args)


def measure(name: str) -> dict[str, float]:
    """Median seconds of ours and of each peer, eager and compiled. Raises `RuntimeError` unless all agree."""
    pipeline = PIPELINES[name]
    args = pipeline.make()
    want = pipeline.ours(*args)
    runs = {"ours": pipeline.ours, **pipeline.peers,
            **{f"compiled {peer}": torch.compile(run, dynamic=False) for peer, run in pipeline.peers.items()}}
    for peer, run in runs.items():
        for a, b in zip(run(*args), want, strict=True):
            if a.shape != b.shape or not bool(((a - b).abs() <= pipeline.tolerance * b.abs().max()).all()):
                raise RuntimeError(f"{name}: {peer} and ours differ")
    call = Call(args, {}, args, "generated clusters")
    clocks = {peer: timing.cpu_clock(partial(_run, run), call) for peer, run in runs.items()}
    samples = timing.paired(clocks, SECONDS)
    torch.compiler.reset()
    return {peer: s.median for peer, s in samples.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipelines", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PIPELINES)}; all when absent")
    names = parser.parse_args(argv).names or list(PIPELINES)
    unknown = sorted(set(names) - set(PIPELINES))
    if unknown:
        print(f"pipelines: no {', '.join(unknown)}, allowed: {', '.join(PIPELINES)}", file=sys.stderr)
        return 2
    for name in names:
        times = measure(name)
        ours = times.pop("ours")
        best = min(times.values())
        cells = ", ".join(f"{peer} {t * 1e3:.2f}" for peer, t in times.items())
        print(f"{name}: ours {ours * 1e3:.2f} ms; {cells}; best / ours {best / ours:.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
