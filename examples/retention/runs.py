"""Seeds beside each other, each in a process of its own."""

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .evaluate import evaluate
from .train import train


def say(start: float, text: str) -> None:
    print(f"{time.time() - start:6.0f} s  {text}", flush=True)


def run_seed(seed: int, args: argparse.Namespace, work: Path, start: float) -> dict[str, Any] | None:
    """Train and answer, or one of the two."""
    torch.set_num_threads(1)
    progress = partial(say, start)
    model = train(seed, work, args.steps, progress)
    return None if args.only == "train" else evaluate(model, seed, work, args.pictures, progress)


def run_seeds(args: argparse.Namespace, work: Path, start: float) -> dict[int, dict[str, Any]]:
    seeds = range(args.seeds)
    if args.jobs == 1:
        found = [run_seed(seed, args, work, start) for seed in seeds]
    else:
        with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(run_seed, seeds, *zip(*[(args, work, start)] * args.seeds, strict=True)))
    return {seed: one for seed, one in zip(seeds, found, strict=True) if one is not None}
