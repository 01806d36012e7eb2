"""From images and a model to a codebook file, in two steps: measure into shard files, then select."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from . import _shards
from ._measure import probe
from ._select import Selection, check_images, select, share_of
from .density import build_density_peaks
from .io import CodebookError, save
from .kmeans import build_kmeans

RECIPES = ("language", "kmeans", "density", "mean")


@dataclass(frozen=True)
class Clusters:
    """Of the cheap recipes: how many prototypes, and of k-means the rounds and the seed."""

    count: int = 64
    iterations: int = 30
    seed: int = 0


@dataclass(frozen=True)
class Built:
    """path, sizes `P x D`, the recipe in words, the images that went in, and those skipped with the reason."""

    path: Path
    sizes: tuple[int, int]
    recipe: str
    images: int
    skipped: tuple[str, ...]


def build(model: Any, processor: Any, images: Sequence[str | os.PathLike], path: str | os.PathLike, *,
          recipe: str = "language", selection: Selection | None = None, clusters: Clusters | None = None,
          shards: str | os.PathLike | None = None, name: str | None = None, **probing: Any) -> Built:
    """Build a codebook of a model from images: `probe`, then `merge` of its shards.

    An interrupted call goes on where it stopped when it is made again.

    Args:
        model: LLaVA, LLaVA-NeXT, LLaVA-OneVision, InternVL, Qwen2-VL, Qwen2.5-VL or Qwen3-VL, loaded with transformers.
        processor: its processor.
        images: files.
        path: of the codebook.
        recipe: `"language"`: tokens that tell the model nothing alone, change nothing when left out, and have their
            like in many images; or from the features only: `"kmeans"` centroids, `"density"` peaks, `"mean"` tokens of
            the images.
        selection: of `"language"`; clusters: of the others.
        shards: folder of the measurements; `<path>.shards` when absent. It stays, so that other thresholds cost
            nothing.
        probing: further arguments of `probe`.

    Raises:
        CodebookError: a model or a number that does not fit, too few images that can be read, nothing selected.
        OSError: a disk that is full; an older codebook stays as it was.

    Example:
        >>> prototypes.build(model, processor, sorted(Path("coco").glob("*.jpg")), "book.safetensors",
        ...                  selection=prototypes.Selection(0.15, 0.002))  # doctest: +SKIP

    Source: Yang et al., "Beyond Intermediate States: Explaining Visual Redundancy through Language", arXiv 2503.20540.
    """
    _check_recipe(recipe)
    selection = selection or Selection()
    folder = Path(shards or f"{os.fspath(path)}.shards")
    if recipe == "language":
        check_images(len(images), selection)
        probing = {**cuts(selection), **probing}
    files = probe(model, processor, images, folder, language=recipe == "language", name=name, **probing)
    return merge(files, path, recipe=recipe, selection=selection, clusters=clusters)


def cuts(selection: Selection) -> dict[str, float]:
    """The cuts of `probe` that a selection by numbers allows: the rest of a lost token need not be known."""
    if share_of("", selection.max_probability) is not None:
        return {}
    cut = {"probability_cut": float(selection.max_probability)}
    if share_of("", selection.max_divergence) is None:
        cut["divergence_cut"] = float(selection.max_divergence)
    return cut


def merge(shards: Sequence[str | os.PathLike], path: str | os.PathLike, *, recipe: str = "language",
          selection: Selection | None = None, clusters: Clusters | None = None) -> Built:
    """Select prototypes from shard files (or folders of them), of one run or of many, and write the codebook.

    The result depends on the images alone, not on how they were shared out. An image that several shards hold counts
    once.

    Raises:
        CodebookError: as `build`; shards of different models or settings, or damaged ones.
    """
    _check_recipe(recipe)
    files = _shards.files(shards)
    joined = _shards.join([_shards.read(file)[0] for file in files], files)
    if not joined.names:
        raise CodebookError(f"merge: `shards` is without a usable image, of {len(joined.skipped)}, allowed: images "
                            f"that can be read ({'; '.join(joined.skipped[:3])})")
    tensors: dict[str, Tensor] = {}
    thresholds: dict[str, Any] = {}
    if recipe == "language":
        selection = selection or Selection()
        rows, counts = select(joined, selection)
        book = joined.features[rows]
        image = joined.image[rows]
        tensors = {"source.digest": joined.digest[image], "source.grid": joined.grid[image],
                   "source.box": joined.box[image], "source.place": joined.place[rows]}
        thresholds = {**asdict(selection), **counts}
        words = (f"language-grounded, as RedundancyCodebook: probability below {counts['max_probability']:.4g}, "
                 f"divergence below {counts['max_divergence']:.4g}, clusters of over {selection.min_images} images")
    else:
        book, words = cheap(joined.features, recipe, clusters or Clusters(), means=joined.mean)
    facts = {key: joined.about[key] for key in ("model", "model_type", "layer", "dtype")}
    save(path, book, tensors=tensors, recipe=words, thresholds=json.dumps(thresholds), source=f"{len(joined.names)} "
         f"images, {len(joined.features)} tokens", probing=json.dumps(joined.about, sort_keys=True), **facts)
    return Built(Path(path), (book.shape[0], book.shape[1]), words, len(joined.names), joined.skipped)


def cheap(features: Tensor, recipe: str, clusters: Clusters, *, means: Tensor) -> tuple[Tensor, str]:
    """Prototypes from features `[N, D]` alone, in their dtype, and the recipe in words. `means`: of images or rows.

    Raises:
        CodebookError: NaN or infinite features, or more prototypes than features.
    """
    try:
        if recipe == "kmeans":
            book = build_kmeans(features, clusters.count, seed=clusters.seed, iterations=clusters.iterations)
            return book.to(features.dtype), (f"spherical k-means, {clusters.count} clusters, seed {clusters.seed}, at "
                                             f"most {clusters.iterations} iterations, over {len(features)} tokens")
        if recipe == "density":
            return (build_density_peaks(features, clusters.count),
                    f"the {clusters.count} density peaks of {len(features)} tokens")
    except (TypeError, ValueError) as error:
        raise CodebookError(str(error)) from error
    if not means.isfinite().all():
        raise CodebookError("mean: `features` is a tensor with NaN or infinite entries, allowed: finite entries")
    return means.to(features.dtype), f"mean tokens, one for each of {len(means)} images"


def _check_recipe(recipe: str) -> None:
    if recipe not in RECIPES:
        raise CodebookError(f"build-prototypes: `recipe` is {recipe!r}, allowed: {', '.join(RECIPES)}")
