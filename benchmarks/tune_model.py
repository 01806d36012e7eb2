"""Launch parameters by model: `python -m benchmarks.tune_model` predicts what could be faster than the shipped table.

The kernels that score tokens against prototypes, in bfloat16. Each candidate is compiled; the time of a call follows
from its registers and shared memory (blocks per multiprocessor), the bytes and operations of its hot loop, and the
device's figures. A program makes `trips` through the loop; the programs run in waves; within a wave a multiprocessor
moves bytes at the lowest of (bytes in flight / latency), its port to the L2 and its share of the L2, and multiplies at
its share of the matrix rate; device memory bounds the whole. What the model needs and a datasheet does not say is a
range, and a candidate wins a shape only if it is faster by `MARGIN` at every corner of the ranges, and if the kernels
of the op compile with it within the limits. Such entries are written to `vtkernels/tuning/configs/<gpu>/` with the
source "model"; where none wins, nothing is written.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch

from vtkernels.tuning import lookup

from .static import occupancy, table, triton_kernels

MARGIN = 1.15
OPS = ("prototype_scores", "prune_topk", "prune_topk_varlen")
SHAPES = ((576, 4096, 64), (2880, 4096, 256), (4096, 3584, 64), (12544, 3584, 64), (16384, 3584, 256))  # N, D, P


class Gpu(NamedTuple):
    """Datasheet figures: multiprocessors, bytes per second of device memory, dense bf16 operations per second."""

    arch: str
    multiprocessors: int
    memory: float
    matrix: float


GPUS = {"nvidia-h200": Gpu("sm_90", 132, 4.8e12, 989e12), "nvidia-h100-80gb-hbm3": Gpu("sm_90", 132, 3.35e12, 989e12)}


class Corner(NamedTuple):
    """Seconds from a load to its data, bytes per second from the L2 to all and to one multiprocessor, and the shares of
    the matrix rate that HMMA and HGMMA reach in a loop fed from shared memory."""

    latency: float
    l2: float
    port: float
    hmma: float
    hgmma: float


CORNERS = tuple(Corner(*values) for values in itertools.product((0.6e-6, 1.0e-6), (4e12, 7e12), (60e9, 110e9),
                                                                (0.35, 0.62), (0.6, 0.9)))


def candidates() -> Iterator[dict[str, int]]:
    """With eight warps: with four, selection has too many keys in a thread."""
    for n, p, d, stages in itertools.product((16, 32, 64, 128), (64, 128), (64, 128), (3, 4)):
        if n * p <= 64 * 128 and (n + p) * d * 2 * stages <= 200 * 1024:
            yield {"block_n": n, "block_p": p, "block_d": d, "num_warps": 8, "num_stages": stages}


def _figures(config: dict[str, int], arch: str) -> dict[str, Any]:
    from unittest import mock

    aot, (n, d, p) = triton_kernels.aot, (4096, 4096, 64)
    tokens, prototypes = torch.empty(1, n, d, dtype=torch.bfloat16), torch.empty(p, d, dtype=torch.bfloat16)
    scores, argmax = torch.empty(1, n), torch.empty(1, n, dtype=torch.int64)
    with mock.patch.object(lookup, "config", return_value=config):
        from vtkernels.score.prototype_scores.triton import prototype_scores_out
        (launch,) = aot.record(lambda: prototype_scores_out(tokens, prototypes, scores=scores, argmax=argmax))
    (figures,) = triton_kernels.examined([triton_kernels.build_launch(launch, arch)], arch)
    return figures


def seconds(config: dict[str, Any], figures: dict[str, Any], shape: tuple[int, int, int], gpu: Gpu,
            corner: Corner) -> float:
    """Predicted time of a call of N tokens and P prototypes of width D."""
    n, d, p = shape
    blocks = occupancy.blocks(gpu.arch, figures["registers"], figures["shared"], figures["warps"])
    if not blocks or figures["stack"] or figures["local"]:
        return math.inf
    programs = -(-n // config["block_n"])
    trips = -(-d // config["block_d"]) * -(-p // config["block_p"])
    moved, done = (figures["loop"][what] * figures["warps"] for what in ("bytes", "flops"))
    efficiency = corner.hgmma if "HGMMA" in table.units(figures) else corner.hmma

    def wave(count: int) -> float:
        together = -(-count // gpu.multiprocessors)
        in_flight = together * (config["num_stages"] - 1) * moved / corner.latency
        rate = min(in_flight, corner.port, corner.l2 / min(count, gpu.multiprocessors))
        products = gpu.matrix * efficiency / gpu.multiprocessors
        return together * trips * max(moved / rate, done / products)

    whole, rest = divmod(programs, blocks * gpu.multiprocessors)
    running = whole * wave(blocks * gpu.multiprocessors) + (wave(rest) if rest else 0.0)
    return max(running, (n + p) * d * 2 / gpu.memory)


Candidate = tuple[dict[str, Any], dict[str, Any]]  # a configuration and its static figures


def advantage(shipped: Candidate, candidate: Candidate, shape: tuple[int, int, int], gpu: Gpu) -> tuple[float, float]:
    """The least and the most by which a (config, figures) is faster than another, over the corners."""
    ratios = [seconds(*shipped, shape, gpu, c) / seconds(*candidate, shape, gpu, c) for c in CORNERS]
    return min(ratios), max(ratios)


def ranked(gpu: Gpu, figures: dict[str, dict[str, Any]], shape: tuple[int, int, int]) -> list[tuple]:
    """(least, most, configuration) of every candidate against the default table, the best worst case first."""
    n, d, p = shape
    shipped = lookup.config("prototype_scores", "default", torch.bfloat16, n=n, d=d, p=p)
    base = (shipped, figures[_key(shipped)])
    found = [(*advantage(base, (json.loads(key), f), shape, gpu), json.loads(key)) for key, f in figures.items()]
    return sorted(found, key=lambda entry: -entry[0])


def entry_of(op: str, shape: tuple[int, int, int], config: dict[str, int]) -> dict[str, Any]:
    """The default entry of a shape with the scoring parameters changed."""
    sizes = dict(zip(("n", "d", "p"), shape, strict=True))
    rest = lookup.config(op, "default", torch.bfloat16, **sizes)
    return {"match": {"dtype": ["float16", "bfloat16"], **sizes}, "config": {**rest, **config}}


def fits(op: str, entry: dict[str, Any], arch: str) -> bool:
    """Whether every kernel that the op launches with this entry stays within the limits, in both dtypes."""
    cases = triton_kernels.aot_cases
    for dtype in entry["match"]["dtype"]:
        launches = cases.launches_of(cases.Case(op, "default", 0, dtype), entry)
        builds = [triton_kernels.build_launch(launch, arch) for launch in launches]
        if any(table.limits(op, f, arch) for f in triton_kernels.examined(builds, arch)):
            return False
    return True


def _key(config: dict[str, Any]) -> str:
    return json.dumps({name: config[name] for name in lookup.SCORE}, sort_keys=True)


def write(name: str, op: str, won: Sequence[dict[str, Any]]) -> None:
    """A table of these entries and, after them, those of the default table."""
    path = lookup.SHIPPED / name / f"{op}.json"
    path.parent.mkdir(exist_ok=True)
    entries = [*won, *lookup.load(lookup.SHIPPED / "default" / f"{op}.json", op)]
    lines = ",\n".join(f'    {{"match": {json.dumps(e["match"])},\n     "config": {json.dumps(e["config"])}}}'
                       for e in entries)
    path.write_text(f'{{\n  "source": "model",\n  "entries": [\n{lines}\n  ]\n}}\n')


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune_model", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write tables for the shapes that the model wins")
    options = parser.parse_args(argv)
    os.environ.pop("TRITON_INTERPRET", None)
    configs = {_key(c): c for c in candidates()}
    for shipped in lookup.load(lookup.SHIPPED / "default" / "prototype_scores.json", "prototype_scores"):
        if "bfloat16" in shipped["match"]["dtype"]:
            configs[_key(shipped["config"])] = shipped["config"]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(_figures, configs.values(), ["sm_90"] * len(configs)))
    figures = dict(zip(configs, found, strict=True))
    for name, gpu in GPUS.items():
        won: dict[str, list[dict[str, Any]]] = {op: [] for op in OPS}
        for shape in SHAPES:
            order = ranked(gpu, figures, shape)
            least, most, best = order[0]
            print(f"{name} {shape}: {best} is {least:.2f} to {most:.2f} times as fast as the default", flush=True)
            for op in OPS:
                entries = (entry_of(op, shape, config) for least, _, config in order if least >= MARGIN)
                entry = next((e for e in entries if fits(op, e, gpu.arch)), None)
                if entry:
                    print(f"  {op}: {entry['config']}", flush=True)
                    won[op].append(entry)
        for op in OPS if options.write else ():
            if won[op]:
                write(name, op, won[op])
    return 0


if __name__ == "__main__":
    sys.exit(main())
