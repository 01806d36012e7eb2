"""From measured tokens to prototypes: thresholds, then the context-independent condition of RedundancyCodebook."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..select.cluster_density_peaks import cluster_density_peaks
from ._shards import Shard
from .density import density_peaks
from .io import CodebookError


@dataclass(frozen=True)
class Selection:
    """Which measured tokens become prototypes. The defaults are the published numbers, save for the thresholds.

    max_probability: of the answer to a token alone; candidates are below. A number, or a share of the probed tokens
        such as `"25%"`. Published: 0.15 for LLaVA-1.5-7B, 0.1 for LLaVA-NeXT-8B, 0.08 for LLaVA-OneVision-7B.
    max_divergence: of leaving the token out; candidates are below. A number, or a share of the tokens that are below
        the probability. Published: 0.002 (0.0018 for LLaVA-OneVision-7B).
    image_clusters, max_members: the probed tokens of each image are clustered; candidates of a cluster with more
        members fall away, since large clusters are background.
    clusters, min_images: the candidates of all images are clustered; all of a cluster become prototypes where they
        come from more than `min_images` images.
    neighbours: of the density, at most as many as there are tokens.
    """

    max_probability: float | str = "25%"
    max_divergence: float | str = "25%"
    image_clusters: int = 8
    max_members: int = 8
    clusters: int = 64
    min_images: int = 64
    neighbours: int = 5

    def __post_init__(self) -> None:
        for name in ("max_probability", "max_divergence"):
            share_of(name, getattr(self, name))
        for name, least in (("image_clusters", 1), ("max_members", 1), ("clusters", 1), ("min_images", 0),
                            ("neighbours", 1)):
            if getattr(self, name) < least:
                raise CodebookError(f"select: `{name}` is {getattr(self, name)}, allowed: at least {least}")


def share_of(name: str, given: float | str) -> float | None:
    """The share that a text such as "25%" asks for; None for a threshold."""
    try:
        share = float(given[:-1]) / 100 if isinstance(given, str) and given.endswith("%") else None
        if (share is None and float(given) > 0) or (share is not None and 0 < share <= 1):
            return share
    except ValueError:
        pass
    raise CodebookError(f"select: `{name}` is {given!r}, allowed: a number above 0, or a share from 0 to 100 such as "
                        "'25%'")


def check_images(count: int, selection: Selection) -> None:
    if count <= selection.min_images:
        raise CodebookError(f"select: `images` is {count} that can be used, allowed: more than {selection.min_images} "
                            "(`min_images`, the images that a prototype's cluster must exceed)")


def select(shard: Shard, selection: Selection) -> tuple[Tensor, dict[str, float]]:
    """Tokens of a joined shard that become prototypes, ascending; the thresholds and counts of each step.

    Raises:
        CodebookError: too few images or candidates for the clusters, nothing left, or thresholds beyond what was
            measured.
    """
    check_images(len(shard.names), selection)
    probability, local, everywhere = shard.measures
    if probability.isnan().any():
        raise CodebookError("select: `shards` is without probes by language, allowed: shards of the recipe 'language'")
    max_probability = _threshold("max_probability", selection.max_probability, probability)
    low = probability < max_probability
    weight = float(shard.about["global_weight"])
    # Beyond a cut the local part alone exceeds the cut, and the whole was not measured.
    divergence = torch.where(everywhere.isnan(), local, local + weight * everywhere)
    _check_cut(shard, "probability", max_probability)
    max_divergence = _threshold("max_divergence", selection.max_divergence, divergence[low])
    # A share of divergences that were cut off would be a share of something else.
    _check_cut(shard, "divergence", max_divergence if share_of("", selection.max_divergence) is None else float("inf"))
    candidate = low & (divergence < max_divergence)
    small = _in_small_clusters(shard, selection)
    (rows,) = (candidate & small).nonzero(as_tuple=True)
    counts = {"max_probability": max_probability, "max_divergence": max_divergence, "images": len(shard.names),
              "probed": len(probability), "low_information": int(low.sum()), "candidates": int(candidate.sum()),
              "in_small_clusters": len(rows)}
    if len(rows) < selection.clusters:
        raise CodebookError(f"select: `clusters` is {selection.clusters} with {_told(counts)}, allowed: at most the "
                            "candidates in small clusters; raise the thresholds, or take more images or fewer clusters")
    label, _ = density_peaks(shard.features[rows], selection.clusters,
                             neighbours=min(selection.neighbours, len(rows)))
    images = torch.zeros(selection.clusters, len(shard.names), dtype=torch.bool)
    images[label, shard.image[rows]] = True
    kept = rows[(images.sum(1) > selection.min_images)[label]]
    if not len(kept):
        raise CodebookError(f"select: no cluster has tokens of more than {selection.min_images} images (the most have "
                            f"{int(images.sum(1).max())}), with {_told(counts)}, allowed: a smaller `min_images`, "
                            "fewer `clusters`, higher thresholds, or more images")
    return kept, counts


def _threshold(name: str, given: float | str, values: Tensor) -> float:
    """A share q of n values: the threshold with floor(q n) of them below it, as far as they are distinct."""
    share = share_of(name, given)
    if share is None:
        return float(given)
    count = int(share * len(values))
    return float(values.sort().values[count]) if count < len(values) else float("inf")


def _check_cut(shard: Shard, what: str, limit: float) -> None:
    cut = float(shard.about[f"{what}_cut"])
    if limit > cut:
        raise CodebookError(f"select: `max_{what}` is {limit:g}, allowed: a number up to {cut:g}, beyond which these "
                            "shards were not measured")


def _in_small_clusters(shard: Shard, selection: Selection) -> Tensor:
    small = torch.zeros(len(shard.image), dtype=torch.bool)
    for image in range(len(shard.names)):
        (tokens,) = (shard.image == image).nonzero(as_tuple=True)
        if not len(tokens):
            continue
        label, _ = cluster_density_peaks(shard.features[tokens][None], min(selection.image_clusters, len(tokens)),
                                         neighbours=min(selection.neighbours, len(tokens)))
        small[tokens] = (torch.bincount(label[0]) <= selection.max_members)[label[0]]
    return small


def _told(counts: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in counts.items())
