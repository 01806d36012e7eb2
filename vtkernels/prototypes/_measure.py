"""Images through a model into shard files, which an interrupted or a shared-out run picks up."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import _shards
from ._progress import Progress
from .io import LAYER, CodebookError


def probe(model: Any, processor: Any, images: Sequence[str | os.PathLike], shards: str | os.PathLike, *,
          name: str | None = None, question: str | None = None, prompt: str | None = None, answer_start: str = "",
          batch: int = 16, images_per_shard: int = 8, worker: int = 0, workers: int = 1, show: bool = True,
          **probing: Any) -> list[Path]:
    """Measure the tokens of images into shard files. Files that are there and whole are not measured again.

    Args:
        model, processor, images: as of `build`.
        shards: a folder, made when it is absent.
        name: of the model, for the file; that of its configuration when absent.
        question: put to the model by its chat template; prompt: the whole text instead, with the image's placeholder.
        answer_start: text that the answer begins with, before the word whose logits count.
        batch: prompts at a time.
        images_per_shard: images of a file, and what an interruption can cost.
        worker, workers: this process measures every `workers`-th shard, from `worker` on.
        show: a line of progress on stderr.
        probing: `probes` (96 tokens of an image), `top_logits` (50), `divergence_logits` (10), `global_weight` (16.0),
            `probability_cut`, `divergence_cut`, `language`, see `_probe.Probing`.

    Returns:
        All files of the run, those of other workers included.

    Raises:
        CodebookError: a model or a number that does not fit; a folder with shards of another run.
    """
    from ._probe import Probing, measure, probed_places  # here, since they load the integrations
    from ._vlm import QUESTION, Vlm

    if not 0 <= worker < workers:
        raise CodebookError(f"probe: `worker` is {worker}, allowed: 0 to {workers - 1}, of {workers}")
    settings = Probing(**probing)
    for key, value in {"batch": batch, "images_per_shard": images_per_shard, "probes": settings.probes,
                       "top_logits": settings.top_logits, "divergence_logits": settings.divergence_logits}.items():
        if value < 1:
            raise CodebookError(f"probe: `{key}` is {value}, allowed: at least 1")
    vlm = Vlm(model, processor, question=question or QUESTION, prompt=prompt, answer_start=answer_start)
    about = {"model": name or getattr(model.config, "_name_or_path", "") or type(model).__name__,
             "model_type": model.config.model_type, "layer": LAYER, "dtype": str(model.dtype).removeprefix("torch."),
             "prompt": vlm.text, **{key: str(value) for key, value in asdict(settings).items()}}
    plan = _plan([Path(image) for image in images], Path(shards), images_per_shard, about)
    mine = plan[worker::workers]
    missing = [(file, some, key) for file, some, key in mine if not _is_done(file, key, about)]
    progress = Progress("images", sum(len(some) for _, some, _ in mine),
                        sum(len(some) for _, some, _ in mine) - sum(len(some) for _, some, _ in missing))

    def one(image: Path) -> tuple[Any, Tensor, Tensor]:
        seen = vlm.see(image)
        places = probed_places(seen.features, settings.probes)
        if settings.language:
            return seen, places, measure(vlm, seen, places, settings, batch)
        return seen, places, torch.full((3, len(places)), torch.nan, dtype=torch.float64)

    for file, some, key in missing:
        _measured(some, one, vlm.dim, model.dtype, about, progress if show else None).write(file, key)
    return [file for file, _, _ in plan]


def _measured(images: Sequence[Path], one: Callable, dim: int, dtype: torch.dtype, about: dict[str, str],
              progress: Progress | None) -> _shards.Shard:
    from ._vlm import UnusableImage

    parts: list[tuple] = []
    names, skipped = [], []
    for image in images:
        try:
            seen, places, measures = one(image)
        except UnusableImage as error:
            skipped.append(f"{image}: {error}")
        else:
            names.append(image.name)
            parts.append((seen.features[places].cpu(), places.cpu(), measures.cpu(), tuple(seen.digest), seen.grid,
                          seen.box, seen.features.double().mean(0).to(dtype).cpu()))
        if progress:
            progress.step()
    features, place, measures, digest, grid, box, mean = zip(*parts, strict=True) if parts else [()] * 7
    count = torch.tensor([len(p) for p in place], dtype=torch.int64)
    return _shards.Shard(
        torch.cat([torch.empty(0, dim, dtype=dtype), *features]),
        torch.arange(len(parts)).repeat_interleave(count), torch.cat([torch.empty(0, dtype=torch.int64), *place]),
        torch.cat([torch.empty(3, 0, dtype=torch.float64), *measures], 1),
        torch.tensor(digest, dtype=torch.uint8).reshape(-1, 32), torch.tensor(grid, dtype=torch.int64).reshape(-1, 2),
        torch.tensor(box, dtype=torch.float64).reshape(-1, 4),
        torch.stack(mean) if mean else torch.empty(0, dim, dtype=dtype),
        about, tuple(names), tuple(skipped))


def _plan(images: list[Path], folder: Path, size: int, about: dict[str, str]) -> list[tuple[Path, list[Path], str]]:
    """File, images and key of each shard. The key changes with the images and the settings."""
    if not images:
        raise CodebookError("probe: `images` is empty, allowed: image files")
    batches = [images[i:i + size] for i in range(0, len(images), size)]
    folder.mkdir(parents=True, exist_ok=True)
    plan = []
    for i, some in enumerate(batches):
        facts = [[str(p.resolve()), p.stat().st_size if p.is_file() else -1] for p in some]
        key = hashlib.sha256(json.dumps([facts, about], sort_keys=True).encode()).hexdigest()
        plan.append((folder / f"probes-{i:06d}-of-{len(batches):06d}.safetensors", some, key))
    if others := set(folder.glob(_shards.PATTERN)) - {file for file, _, _ in plan}:
        raise CodebookError(f"{folder}: holds {len(others)} shards of another run, such as {min(others).name}, "
                            "allowed: shards of this run, or an empty folder")
    return plan


def _is_done(file: Path, key: str, about: dict[str, str]) -> bool:
    """Whether a shard is there and whole. A damaged one is measured again, one of another run is refused."""
    if not file.exists():
        return False
    try:
        shard, found = _shards.read(file)
    except CodebookError:
        return False
    if found == key:
        return True
    _shards.check_same(shard.about, file, about, "this run")
    raise CodebookError(f"{file}: was made from other images, allowed: those of this run, or an empty folder")
