"""The demo from arguments to files."""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vtkernels

from .. import prototypes
from ..prototypes.io import write_atomically
from . import DemoError, encoder, features, images, picture, pipeline, table


@dataclass
class Input:
    """One row of tokens, with its photograph if there is one."""

    name: str
    hidden: Tensor  # [1, N, D]
    view: Any = None
    encode_ms: list[float] = field(default_factory=list)


def run(paths: list[str], features_path: str | None, codebook_path: str | None, keep: float, out: str, seed: int,
        compile_peer: bool = True) -> None:
    """Prune every photograph (or row of features), write its picture, print the report.

    Raises:
        DemoError, CodebookError: an input that cannot be used; no picture of that input is written.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise DemoError(f"--out {folder}: is a file, allowed: a folder")
    skipped: list[str] = []
    inputs: Iterator[Input]
    if features_path is None:
        book = prototypes.load(codebook_path or prototypes.SHIPPED, dim=encoder.DIM, dtype=torch.float32)
        inputs = _photographs(paths, folder, skipped)
    else:
        rows = features.read_features(Path(features_path))
        book = prototypes.load(codebook_path or prototypes.SHIPPED, dim=rows.shape[-1], dtype=rows.dtype)
        inputs = _feature_rows(Path(features_path).stem, rows)
    race = None
    report: list[table.Row] = []
    taken: set[str] = set()
    for item in inputs:
        if race is None:
            backend = _backend(item.hidden)
            k = max(1, round(keep * item.hidden.shape[1]))
            race = pipeline.Race(book.prototypes, book.rnorm, k, compile_peer)
        row = _prune(item, race, seed, folder, taken)
        report.append(row)
        print(f"{row.name}: {row.tokens_out} of {row.tokens_in} tokens kept", file=sys.stderr, flush=True)
    if skipped:
        print(f"skipped {len(skipped)} unreadable image{'s' * (len(skipped) > 1)}:")
        print("\n".join(f"  {reason}" for reason in skipped))
    if race is None:
        raise DemoError("none of the images could be read")
    encoded = features_path is None
    print(table.photographs(report), table.times(race.timings, encoded), table.notes(encoded, backend), sep="\n\n")


def _prune(item: Input, race: pipeline.Race, seed: int, folder: Path, taken: set[str]) -> table.Row:
    kv = pipeline.project_kv(item.hidden, seed)
    pruned, scores = race.run(item.hidden, kv)
    race.timings.measured.setdefault("encode", []).extend(item.encode_ms)
    count = item.hidden.shape[1]
    rows, columns = picture.grid_of(count)
    kept = np.zeros(rows * columns, dtype=bool)
    kept[pruned.indices[0].numpy()] = True
    heat = np.full(rows * columns, np.nan, dtype=np.float32)
    heat[:count] = scores[0].numpy()
    title = f"{item.name}: {pruned.indices.shape[1]} of {count} visual tokens kept"
    note = ("features of a small patch encoder that stands in for a vision tower" if item.view is not None
            else "features from a file")
    png = picture.draw(title, note, item.view, kept.reshape(rows, columns), heat.reshape(rows, columns))
    path = folder / f"{_unused(item.name, taken)}.png"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png)
    return table.Row(item.name, count, pruned.hidden.shape[1], pipeline.bytes_of(item.hidden, kv),
                     pipeline.bytes_of(pruned.hidden, pruned.kv), str(path))


def _photographs(paths: list[str], folder: Path, skipped: list[str]) -> Iterator[Input]:
    named, found = images.collect(paths, skip=folder) if paths else (images.packaged(), [])
    shipped = prototypes.load(prototypes.SHIPPED, dim=encoder.DIM)
    statistics = shipped.tensors["encoder.mean"], shipped.tensors["encoder.std"]
    for path in named:
        images.read(path)  # a bad file that the user named is an error before anything is written
    for path in itertools.chain(named, found):
        try:
            photograph = images.read(path)
        except DemoError as error:
            if path in named:
                raise
            skipped.append(str(error))
            continue

        def encode(pixels: Tensor = photograph.pixels) -> Tensor:
            return encoder.standardize(encoder.raw_features(pixels), *statistics).float()[None]

        encode_ms = [pipeline.timed(encode) for _ in range(3)]
        yield Input(photograph.name, encode(), photograph.view, encode_ms)


def _feature_rows(stem: str, rows: Tensor) -> Iterator[Input]:
    for i, row in enumerate(rows):
        yield Input(stem if len(rows) == 1 else f"{stem}-{i}", row[None])


def _backend(hidden: Tensor) -> str:
    try:
        return vtkernels.explain("prune_topk", hidden).backend
    except RuntimeError as error:  # VTKERNELS_BACKEND asks for one that cannot run here
        raise DemoError(str(error)) from error


def _unused(name: str, taken: set[str]) -> str:
    """The name, or name-2, name-3 ... when photographs of different folders share it."""
    unused = next(n for n in itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2))) if n not in taken)
    taken.add(unused)
    return unused
