"""Codebooks of one model into one."""

import os
from collections.abc import Sequence

import torch

from .io import CodebookError, load, save

_SAME = ("model_type", "layer", "dtype", "encoder")


def join_codebooks(paths: Sequence[str | os.PathLike], path: str | os.PathLike) -> tuple[int, int]:
    """Write the prototypes of all codebooks, in order, equal ones once. How many there are, and how many fell away.

    Sources of prototypes stay where all files have them.

    Raises:
        CodebookError: other D, dtype, model type or layer than the first; tensors beside prototypes and sources, whose
            meaning would be lost.
    """
    books = [load(each) for each in paths]
    first = books[0]
    for book, name in zip(books, paths, strict=True):
        if book.prototypes.shape[1] != first.prototypes.shape[1] or book.prototypes.dtype != first.prototypes.dtype:
            raise CodebookError(f"{name}: is of D = {book.prototypes.shape[1]} and {book.prototypes.dtype}, allowed: "
                                f"{first.prototypes.shape[1]} and {first.prototypes.dtype}, as {paths[0]}")
        for key in _SAME:
            if book.metadata.get(key) != first.metadata.get(key):
                raise CodebookError(f"{name}: is for {key} {book.metadata.get(key)!r}, allowed: "
                                    f"{first.metadata.get(key)!r}, as {paths[0]}")
        if other := [key for key in book.tensors if not key.startswith("source.")]:
            raise CodebookError(f"{name}: holds {', '.join(other)} beside its prototypes, allowed: codebooks without")
    prototypes = torch.cat([book.prototypes for book in books])
    seen: dict[bytes, int] = {}
    for i, row in enumerate(prototypes):
        seen.setdefault(row.view(torch.uint8).numpy().tobytes(), i)
    rows = torch.tensor(list(seen.values()))
    sources = [key for key in first.tensors if all(key in book.tensors for book in books)]
    facts = {key: value for key, value in first.metadata.items()
             if key not in ("format", "version", "sizes", "sha256", "thresholds", "probing", "source", "recipe")}
    recipes = list(dict.fromkeys(book.metadata.get("recipe", "unknown") for book in books))
    tensors = {key: torch.cat([book.tensors[key] for book in books])[rows] for key in sources}
    save(path, prototypes[rows], tensors=tensors, recipe=f"merged: {'; '.join(recipes)}",
         source="; ".join(book.metadata.get("source", "unknown") for book in books), **facts)
    return len(rows), len(prototypes) - len(rows)
