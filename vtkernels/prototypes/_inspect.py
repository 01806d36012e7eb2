"""What is in a codebook: sizes, how much of some features it covers, and what its prototypes look like."""

import hashlib
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..demo import need
from ..score.prototype_topm import prototype_topm
from . import _shards
from .io import Codebook, CodebookError, write_atomically

LEVELS = (0.3, 0.5, 0.7, 0.9)
SHOWN, NEIGHBOURS = 10, 6


def describe(book: Codebook) -> str:
    """Sizes, norms, how alike the prototypes are, and the metadata."""
    prototypes = book.prototypes
    count, dim = prototypes.shape
    norms = prototypes.float().norm(dim=1)
    lines = [f"{count} prototypes of {dim} x {str(prototypes.dtype).removeprefix('torch.')}",
             f"norms: {norms.min():.4g} to {norms.max():.4g}, median {norms.median():.4g}"]
    if count > 1:
        scores, index = prototype_topm(prototypes, prototypes, 2)
        other = torch.where(index[:, 0] == torch.arange(count), scores[:, 1], scores[:, 0])
        lines.append(f"cosine to the nearest other prototype: median {other.median():.3f}, at most {other.max():.3f}")
    if "source.digest" in book.tensors:
        lines.append(f"from {len(book.tensors['source.digest'].unique(dim=0))} images")
    return "\n".join(lines + [f"{key}: {value}" for key, value in sorted(book.metadata.items())])


def coverage(book: Codebook, features: Tensor) -> str:
    """The share of features whose largest cosine to a prototype reaches some levels.

    Raises:
        CodebookError: features of another D.
    """
    if features.shape[1] != book.prototypes.shape[1]:
        raise CodebookError(f"inspect: `features` is of D = {features.shape[1]}, allowed: D = "
                            f"{book.prototypes.shape[1]}, that of the codebook")
    scores, nearest = prototype_topm(features, book.prototypes.to(features.dtype), 1)
    shares = ", ".join(f"{level}: {100 * float((scores >= level).double().mean()):.1f} %" for level in LEVELS)
    return (f"coverage of {len(features)} tokens, by their largest cosine of at least {shares}\n"
            f"{len(nearest.unique())} of {len(book.prototypes)} prototypes are the nearest of a token")


def picture(book: Codebook, shard: _shards.Shard, images: Sequence[Path], path: str | os.PathLike) -> None:
    """A PNG: some prototypes, each a row: the patch it comes from, then the patches of its nearest tokens.

    The prototypes need their source in the file, as `"language"` writes it; the tokens are those of the shard.

    Raises:
        CodebookError: a codebook without sources, or no image of the shard among `images`.
    """
    if "source.digest" not in book.tensors:
        raise CodebookError("inspect: `picture` is asked of a codebook that does not say where it comes from, "
                            "allowed: one of the recipe 'language'")
    found = _by_digest(images)
    digests = [bytes(row.tolist()) for row in shard.digest]
    (usable,) = torch.tensor([digests[i] in found for i in shard.image.tolist()]).nonzero(as_tuple=True)
    if not len(usable):
        raise CodebookError("inspect: `images` has no image of the shards, allowed: those that were probed")
    shown = torch.linspace(0, len(book.prototypes) - 1, min(SHOWN, len(book.prototypes))).round().long()
    scores, nearest = prototype_topm(book.prototypes[shown], shard.features[usable].to(book.prototypes.dtype),
                                     min(NEIGHBOURS + 1, len(usable)))
    canvas, figures = need("matplotlib.backends.backend_agg", "matplotlib"), need("matplotlib.figure", "matplotlib")
    columns = NEIGHBOURS + 1
    figure = figures.Figure(figsize=(1.3 * columns, 1.4 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, p in enumerate(shown.tolist()):
        own = bytes(book.tensors["source.digest"][p].tolist()), int(book.tensors["source.place"][p])
        cells = [(*own, book.tensors["source.grid"][p], book.tensors["source.box"][p], f"prototype {p}")]
        for score, t in zip(scores[row].tolist(), usable[nearest[row]].tolist(), strict=True):
            i, place = int(shard.image[t]), int(shard.place[t])
            if (digests[i], place) != own and len(cells) < columns:
                cells.append((digests[i], place, shard.grid[i], shard.box[i], f"{score:.2f}"))
        for axis, (digest, place, grid, box, title) in zip(axes[row], cells, strict=False):
            axis.set_title(title, fontsize=7)
            if digest in found:
                axis.imshow(_patch(found[digest], grid.tolist(), box.tolist(), place))
    out = BytesIO()
    canvas.FigureCanvasAgg(figure).print_png(out)
    write_atomically(path, out.getvalue())


def _by_digest(images: Sequence[Path]) -> dict[bytes, Path]:
    return {hashlib.sha256(path.read_bytes()).digest(): path for path in images}


def _patch(path: Path, grid: list[int], box: list[float], place: int) -> Any:
    """The token's cell with one cell around it."""
    from ._vlm import read_image

    image, _ = read_image(path)
    row, column = divmod(place, grid[1])
    width, height = (box[2] - box[0]) / grid[1], (box[3] - box[1]) / grid[0]
    sides = (box[0] + (column - 1) * width, box[1] + (row - 1) * height,
             box[0] + (column + 2) * width, box[1] + (row + 2) * height)
    pixels = [round(side * size) for side, size in zip(sides, image.size * 2, strict=True)]
    return image.crop(tuple(pixels)).resize((72, 72), need("PIL.Image", "Pillow").Resampling.BICUBIC)
