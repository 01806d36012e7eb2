"""`python -m examples.retention`: train, prune, answer, time, report. An interrupted run goes on where it was."""

import argparse
import json
import os
import shutil
import sys
import time
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import cpu_model

from . import evaluate, report, timing
from .results import agrees, outside, retimed, summarise
from .runs import run_seeds, say
from .train import STEPS, train

RESULTS = Path(__file__).parent / "results"
WORK = report.ROOT / "build" / "retention"
SEEDS = 5
PARTS = ("train", "answer", "time", "report")


def measure(args: argparse.Namespace, start: float) -> dict[str, Any]:
    torch.set_num_threads(1)
    state = args.work / "seed0.pt"
    if not state.is_file():
        raise SystemExit(f"retention: `{state}` is missing, allowed: a model that `--only train` has left there")
    found = timing.measure(train(0, args.work, args.steps, partial(say, start)), progress=partial(say, start))
    evaluate.write(args.work / "time.json", found)
    return found


def about(args: argparse.Namespace, seeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    commits = {one["commit"] for one in seeds.values()}
    return {"command": "python -m examples.retention", "commit": " ".join(sorted(map(str, commits))),
            "machine": f"{cpu_model()}, torch {torch.__version__}", "steps": args.steps, "questions": args.pictures,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")}


def publish(data: dict[str, Any], start: float) -> None:
    evaluate.write(RESULTS / "retention.json", data)
    report.write(data, RESULTS)
    say(start, f"wrote {RESULTS.relative_to(report.ROOT)}, {report.PAGE.relative_to(report.ROOT)} and its pictures")


def check(args: argparse.Namespace, start: float) -> int:
    """Seeds again, in a folder of their own: 0 where their figures lie within the committed bands."""
    data = json.loads((RESULTS / "retention.json").read_text())
    if (args.steps, args.pictures) != (data["steps"], data["questions"]):
        raise SystemExit(f"retention: `steps`, `pictures` is {args.steps}, {args.pictures}, allowed: {data['steps']}, "
                         f"{data['questions']} (those of the committed table)")
    work, bad = args.work / "check", 0
    for seed, found in run_seeds(args, work, start).items():
        misses, total = outside(data, found["rows"])
        good = agrees(data, misses, total)
        bad += not good
        print("\n".join(misses))
        print(f"seed {seed}: {total - len(misses)} of {total} figures lie within the committed bands: "
              f"{'reproduced' if good else 'NOT reproduced'}")
    shutil.rmtree(work)
    return int(bad > 0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m examples.retention", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="0 to this less one")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--pictures", type=int, default=evaluate.PICTURES, help="of the test, for each seed")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="seeds at a time, a core each")
    parser.add_argument("--work", type=Path, default=WORK, help="where the state is kept")
    parser.add_argument("--only", choices=PARTS, help="one part; `time` and `report` renew the committed results")
    parser.add_argument("--check", action="store_true", help="compare new runs with the committed bands; write nothing")
    args = parser.parse_args(arguments)
    start = time.time()
    if args.check:
        return check(args, start)
    if args.only in ("time", "report"):
        data = json.loads((RESULTS / "retention.json").read_text())
        publish(retimed(data, measure(args, start)) if args.only == "time" else data, start)
        return 0
    seeds = run_seeds(args, args.work, start)
    if args.only is None:
        publish(summarise(seeds, measure(args, start), about(args, seeds)), start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
