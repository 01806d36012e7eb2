"""Shard files: what was measured on a few images. Small, written whole, and the same whoever measured them.

Images are known by the sha256 of their file, and joined shards stand in its order: neither names, folders, workers nor
the order of the files change what is built from them.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .io import CodebookError, read_safetensors, write_safetensors

FORMAT, VERSION = "vtkernels probes", "1"
PATTERN = "probes-*.safetensors"
_TENSORS = ("features", "image", "place", "measures", "digest", "grid", "box", "mean")


@dataclass(frozen=True)
class Shard:
    """T probed tokens of I images.

    features: `[T, D]`; image: `[T]` int64, a row of the tensors of the images; place: `[T]` int64, in raster order.
    measures: `[3, T]` float64: probability, local divergence, divergence in the whole image; NaN: not measured.
    digest: `[I, 32]` uint8; grid: `[I, 2]` int64; box: `[I, 4]` float64, see `_vlm.Seen`; mean: `[I, D]` mean tokens.
    about: the model and the settings, equal in all shards of a run; names: of the images; skipped: those that could not
        be used, with the reason.
    """

    features: Tensor
    image: Tensor
    place: Tensor
    measures: Tensor
    digest: Tensor
    grid: Tensor
    box: Tensor
    mean: Tensor
    about: dict[str, str]
    names: tuple[str, ...]
    skipped: tuple[str, ...]

    def write(self, path: Path, batch: str) -> None:
        """`batch`: what the file was asked to hold, for whoever goes on after an interruption."""
        texts = {"about": json.dumps(self.about, sort_keys=True), "names": json.dumps(self.names),
                 "skipped": json.dumps(self.skipped), "batch": batch}
        write_safetensors(path, {name: getattr(self, name) for name in _TENSORS},
                          {"format": FORMAT, "version": VERSION, **texts})


def read(path: str | os.PathLike) -> tuple[Shard, str]:
    """A shard and its batch.

    Raises:
        CodebookError: another kind of file, or one that is damaged.
    """
    metadata, tensors, digest = read_safetensors(path)
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION or set(tensors) != set(_TENSORS):
        raise CodebookError(f"{path}: is not a shard of probes, allowed: files that `build-prototypes probe` wrote, of "
                            f"version {VERSION}")
    if metadata.get("sha256") != digest:
        raise CodebookError(f"{path}: holds tensor bytes of sha256 {digest}, allowed: {metadata.get('sha256')}, which "
                            "its metadata promises")
    values: dict[str, Any] = {**tensors, "about": json.loads(metadata["about"])}
    values |= {name: tuple(json.loads(metadata[name])) for name in ("names", "skipped")}
    return Shard(**values), metadata["batch"]


def is_shard(path: Path) -> bool:
    """Whether a file says that it is one; other files are codebooks, or refused as such."""
    return path.is_dir() or read_safetensors(path)[0].get("format") == FORMAT


def files(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """Shard files, and those in folders."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob(PATTERN)) if path.is_dir() else [path]
        if not inside:
            raise CodebookError(f"{path}: holds no shard, allowed: a folder with files {PATTERN}")
        found += inside
    return found


def check_same(about: dict[str, str], name: object, wanted: dict[str, str], where: object) -> None:
    """Refuse a shard of another model or of other settings."""
    differ = [key for key in {**wanted, **about} if about.get(key) != wanted.get(key)]
    if differ:
        got = ", ".join(f"{key} {about.get(key)!r}" for key in differ)
        allowed = ", ".join(repr(wanted.get(key)) for key in differ)
        raise CodebookError(f"{name}: was made with {got}, allowed: {allowed}, as in {where}")


def join(shards: Sequence[Shard], names: Sequence[object]) -> Shard:
    """One shard, its images in the order of their digests and each of them once. `names`: for the message.

    Raises:
        CodebookError: shards of different models or settings.
    """
    for shard, name in zip(shards, names, strict=True):
        check_same(shard.about, name, shards[0].about, names[0])
    where = {bytes(row.tolist()): (s, i) for s, shard in reversed(list(enumerate(shards)))
             for i, row in reversed(list(enumerate(shard.digest)))}
    rows, images, label = [], [], []
    for new, (s, i) in enumerate(where[digest] for digest in sorted(where)):
        (tokens,) = (shards[s].image == i).nonzero(as_tuple=True)
        rows.append((s, tokens))
        images.append((s, i))
        label.append(torch.full((len(tokens),), new))

    def of_tokens(name: str) -> Tensor:
        return torch.cat([getattr(shards[s], name)[tokens] for s, tokens in rows] or [getattr(shards[0], name)[:0]])

    def of_images(name: str) -> Tensor:
        return torch.stack([getattr(shards[s], name)[i] for s, i in images]) if images else getattr(shards[0], name)[:0]

    measures = [shards[s].measures[:, tokens] for s, tokens in rows] or [shards[0].measures[:, :0]]
    skipped = dict.fromkeys(reason for shard in shards for reason in shard.skipped)
    digest, grid, box, mean = map(of_images, ("digest", "grid", "box", "mean"))
    return Shard(of_tokens("features"), torch.cat(label or [shards[0].image[:0]]), of_tokens("place"),
                 torch.cat(measures, 1), digest, grid, box, mean, shards[0].about,
                 tuple(shards[s].names[i] for s, i in images), tuple(skipped))
