"""Answers of one seed's model to held-out pictures, unpruned and by every method, keep and position policy."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.environment import commit
from vtkernels.prototypes import build_density_peaks
from vtkernels.prototypes.io import write_atomically

from .data import ANSWER, ID, TASKS, TOKENS, ask, scenes
from .methods import ENTRIES, KEEP, Baseline, Entry, count_of
from .model import Model
from .pruning import (
    BYTES_PER_KEY,
    Cache,
    Seen,
    Visual,
    all_places,
    compress,
    drop_before,
    look,
    look_and_drop,
    prefill,
    rows,
    step,
)

PICTURES = 80     # of the test, and as many questions of each task
CODEBOOK = 16     # prototypes, from so many training pictures:
SOURCES = 60
READING, ENDED = TASKS.index("reading"), ID["<end>"]


@dataclass(frozen=True)
class Job:
    """One row of the table: a method, its count, its positions. `keep` is None for one that finds its own count."""

    entry: Entry | None  # None: nothing is dropped
    keep: float | None
    policy: str

    @property
    def key(self) -> str:
        name = "full" if self.entry is None else f"{self.entry.where}/{self.entry.name}"
        return f"{name}/{self.keep}/{self.policy}"


def jobs() -> Iterator[Job]:
    yield Job(None, None, "preserve")
    for entry in ENTRIES:
        for keep in (None,) if entry.fixed else KEEP:
            for policy in entry.policies:
                yield Job(entry, keep, policy)


class Bench:
    """The model of a seed with its test: the questions of a task follow those of the task before."""

    def __init__(self, model: Model, seed: int, pictures: int = PICTURES, tasks: tuple[str, ...] = TASKS):
        self.model, self.seed, self.pictures, self.tasks = model, seed, pictures, tasks
        self.scenes = scenes("test", pictures, (seed,))
        rng = np.random.default_rng((seed, 3))
        asked = [ask(self.scenes, task, rng) for task in tasks]
        self.words = torch.cat([words for words, _ in asked])
        self.answers = torch.cat([answers for _, answers in asked])

    @cached_property
    def seen(self) -> Seen:
        return look(self.model, self.scenes.pixels)

    @cached_property
    def prototypes(self) -> Tensor:
        """Peaks of the density of projected tokens: what is common to many training pictures."""
        features = look(self.model, scenes("train", SOURCES, (self.seed, 10**6)).pixels).features
        return build_density_peaks(self.model.projector(features).flatten(0, 1), CODEBOOK)

    def visual(self, entry: Entry | None, method: Any) -> Visual:
        """The visual tokens of every picture, `[pictures, K, WIDTH]`; where they depend on the question or are dropped
        by it later, of every question, `[tasks * pictures, K, WIDTH]`."""
        times = len(self.tasks)
        if entry is None or entry.where != "outer":
            whole = Visual(self.model.projector(self.seen.features), all_places(self.pictures))
            return whole if entry is None else whole.repeat(times)
        if entry.layers:
            return look_and_drop(self.model, self.scenes.pixels, method, entry.layers)
        if entry.query_aware:
            seen = replace(self.seen, features=self.seen.features.repeat(times, 1, 1), layers=tuple(
                replace(s, query=s.query.repeat(times, 1, 1, 1), key=s.key.repeat(times, 1, 1, 1),
                        value=s.value.repeat(times, 1, 1, 1)) for s in self.seen.layers))
            return drop_before(self.model, seen, method, text=self.model.words(self.words))
        scores = self.seen.attention(all_rows=True)[-1].scores(TOKENS) if entry.scores else None
        return drop_before(self.model, self.seen, method, scores=scores, all_rows=entry.all_rows,
                           within=entry.within)

    def method(self, job: Job) -> Any:
        """The configured method, or None where it cannot reach the count."""
        if job.entry is None:
            return None
        made = job.entry.make(count_of(job.keep) if job.keep else 0, self.prototypes)
        return replace(made, seed=self.seed) if isinstance(made, Baseline) else made

    def prompt(self, job: Job, method: Any) -> tuple[Tensor, list[Cache], float]:
        """Logits of the first word of every answer, the caches, and how many visual tokens went on."""
        visual, entry = self.visual(job.entry, method), job.entry
        if entry is not None and entry.where == "cache":
            _, caches, layers = prefill(self.model, visual, self.words[:, :-1], job.policy)
            caches = compress(method, caches, layers)
            kept = sum(c.keys_per_prompt() for c in caches) / len(caches) - self.words.shape[1]
            return step(self.model, self.words[:, -1:], caches), caches, kept
        if len(visual.hidden) < len(self.words):  # each picture is read once for all of its questions
            _, caches, _ = prefill(self.model, visual, self.words[:self.pictures, :0], job.policy)
            caches = rows(caches, torch.arange(self.pictures).repeat(len(self.tasks)))
            logits = step(self.model, self.words, caches)
        else:
            inner = method if entry is not None and entry.where == "inner" else None
            logits, caches, _ = prefill(self.model, visual, self.words, job.policy, inner)
        return logits, caches, caches[-1].keys_per_prompt() - 1 - self.words.shape[1]

    @torch.no_grad()
    def run(self, job: Job) -> dict[str, Any] | None:
        """Accuracy of each task, and what was kept; None where the method cannot reach the count."""
        method = self.method(job)
        if job.entry is not None and method is None:
            return None
        logits, caches, kept = self.prompt(job, method)
        kv_bytes = BYTES_PER_KEY * sum(c.keys_per_prompt() for c in caches)
        right = self._right(logits, caches)
        return {"kept": round(kept, 2), "kv_bytes": round(kv_bytes),
                "accuracy": {task: right[i].float().mean().item() for i, task in enumerate(TASKS)}}

    def _right(self, logits: Tensor, caches: list[Cache]) -> Tensor:
        """`[TASKS, pictures]` bool. Only digits to read take more than one word."""
        said = logits.argmax(-1)
        right = (said == self.answers[:, 0]).view(len(TASKS), -1)
        chosen = torch.arange(READING * self.pictures, (READING + 1) * self.pictures)
        caches, word, read = rows(caches, chosen), said[chosen], []
        for _ in range(ANSWER - 1):
            word = step(self.model, word[:, None], caches).argmax(-1)
            read.append(word)
        wanted = self.answers[chosen, 1:]
        needed = torch.nn.functional.pad((wanted == ENDED).cumsum(1), (1, 0))[:, :-1] == 0  # up to the first <end>
        right[READING] &= ((torch.stack(read, 1) == wanted) | ~needed).all(1)
        return right


def evaluate(model: Model, seed: int, folder: Path, pictures: int = PICTURES,
             progress: Callable[[str], None] = print) -> dict[str, Any]:
    """All jobs of a seed, `{"commit", "pictures", "rows"}`; those that `folder` holds already are not run again."""
    path, wanted = folder / f"seed{seed}.json", list(jobs())
    done = json.loads(path.read_text()) if path.is_file() else {"commit": commit(), "pictures": pictures, "rows": {}}
    if done["pictures"] != pictures:
        raise ValueError(f"retention: `{path}` has answers to {done['pictures']} pictures, allowed: {pictures}; take "
                         "another --work folder")
    bench = Bench(model, seed, pictures)
    for i, job in enumerate(wanted, 1):
        if job.key not in done["rows"]:
            done["rows"][job.key] = bench.run(job)
            write(path, done)
            if i % 20 == 0 or i == len(wanted):
                progress(f"seed {seed}: row {i} of {len(wanted)}, {job.key}")
    return done


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())
