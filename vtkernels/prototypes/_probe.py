"""What a model says about single visual tokens, by language: RedundancyCodebook's two probes.

1. A token alone: the model answers with only this token for an image; the probability of its first word is the measure
   (softmax over the largest logits).
2. A token left out: the divergence of the first logits with and without it, first among its 3 x 3 neighbours, where
   the centre gives way to the embedding of <pad>, then in the whole image, where all nine give way.

Details as in the official code of Yang et al. (arXiv 2503.20540), to which the published thresholds belong: the
divergence is `(mean_i M_i log(M_i / P_i) + mean_i M_i log(M_i / Q_i)) / 2` with `M = (P + Q) / 2`, over the softmax of
the ten logits that are largest in the intact run.
"""

from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ._vlm import Seen, UnusableImage, Vlm


@dataclass(frozen=True)
class Probing:
    """What is measured. The thresholds of `select` may not exceed the cuts: beyond them nothing was measured.

    probes: tokens of an image that are probed; all of an image that has no more.
    top_logits, divergence_logits: how many logits the two probes look at.
    global_weight: the divergence is the local one plus this times the one in the whole image.
    probability_cut: tokens of at least this probability are not left out of anything.
    divergence_cut: tokens of at least this local divergence are not left out of the whole image.
    language: False measures nothing and keeps the features only.
    """

    probes: int = 96
    top_logits: int = 50
    divergence_logits: int = 10
    global_weight: float = 16.0
    probability_cut: float = float("inf")
    divergence_cut: float = float("inf")
    language: bool = True


def probed_places(features: Tensor, count: int) -> Tensor:
    """Ascending places of the probed tokens: by the cosine to the image's mean token, the nearest `count // 4` and, of
    the others, as many at even distances. (The authors rank by the cosine to the tower's CLS, which not all have.)
    """
    n = len(features)
    if n <= count:
        return torch.arange(n, device=features.device)
    wide = features.double()
    ranked = F.cosine_similarity(wide, wide.mean(0, keepdim=True), dim=1).argsort(descending=True, stable=True)
    first = count // 4
    even = (torch.arange(count - first, device=features.device) * (n - first)).div(count - first, rounding_mode="floor")
    return torch.cat([ranked[:first], ranked[first + even]]).sort().values


def measure(vlm: Vlm, seen: Seen, places: Tensor, probing: Probing, batch: int) -> Tensor:
    """`[3, T]` float64 of the probed tokens: probability, local divergence, divergence in the whole image.

    NaN: not measured, since the token was beyond a cut.

    Raises:
        UnusableImage: the model's logits are not finite.
    """
    alone = _batched(vlm, replace(seen, grid=(1, 1)), places[:, None], None, batch)
    probability = alone.topk(min(probing.top_logits, alone.shape[1])).values.softmax(1)[:, 0]
    out = torch.full((3, len(places)), torch.nan, dtype=torch.float64, device=places.device)
    out[0] = probability
    groups = defaultdict(list)  # by the shape of the neighbourhood, so that a batch has one prompt length
    for t in (probability < probing.probability_cut).nonzero()[:, 0].tolist():
        block, shape, centre = _neighbours(int(places[t]), seen.grid)
        groups[shape].append((t, block, centre))
    for shape, members in groups.items():
        index = torch.tensor([block for _, block, _ in members], device=places.device)
        hidden = torch.zeros_like(index, dtype=torch.bool)
        hidden[torch.arange(len(members)), [centre for _, _, centre in members]] = True
        around = replace(seen, grid=shape)
        intact, without = (_batched(vlm, around, index, left_out, batch) for left_out in (None, hidden))
        out[1, [t for t, _, _ in members]] = divergence(intact, without, probing.divergence_logits)
    (left,) = (out[1] < probing.divergence_cut).nonzero(as_tuple=True)
    if len(left):
        everything = torch.arange(len(seen.features), device=places.device)[None]
        intact = _batched(vlm, seen, everything, None, batch)
        hidden = torch.zeros(len(left), len(seen.features), dtype=torch.bool, device=places.device)
        for row, t in enumerate(left.tolist()):
            hidden[row, _neighbours(int(places[t]), seen.grid)[0]] = True
        without = _batched(vlm, seen, everything.expand(len(left), -1), hidden, batch)
        out[2, left] = divergence(intact.expand_as(without), without, probing.divergence_logits)
    return out


def divergence(intact: Tensor, without: Tensor, count: int) -> Tensor:
    """`[B]` of two `[B, V]` logits, by the formula above. At least 0."""
    values, top = intact.topk(min(count, intact.shape[1]))
    p, q = values.log_softmax(1), without.gather(1, top).log_softmax(1)
    middle = (p.exp() + q.exp()) / 2
    return (middle * (2 * middle.log() - p - q)).mean(1).div(2).clamp_min(0.0)


def _neighbours(place: int, grid: tuple[int, int]) -> tuple[list[int], tuple[int, int], int]:
    """The 3 x 3 places around one, less what lies outside the grid; their rows and columns; where the centre is."""
    row, column = divmod(place, grid[1])
    rows = range(max(0, row - 1), min(grid[0], row + 2))
    columns = range(max(0, column - 1), min(grid[1], column + 2))
    block = [r * grid[1] + c for r in rows for c in columns]
    return block, (len(rows), len(columns)), block.index(place)


def _batched(vlm: Vlm, seen: Seen, index: Tensor, hidden: Tensor | None, batch: int) -> Tensor:
    """Logits with the tokens `index` `[B, n]`; where `hidden` is true, <pad> stands in."""
    parts = []
    for start in range(0, len(index), batch):
        rows = index[start:start + batch]
        visual, deep = seen.features[rows], tuple(layer[rows] for layer in seen.deep)
        if hidden is not None:
            gone = hidden[start:start + batch, :, None]
            visual = torch.where(gone, vlm.pad.to(visual), visual)
            deep = tuple(layer.masked_fill(gone, 0.0) for layer in deep)
        parts.append(vlm.logits(seen, visual, deep))
    logits = torch.cat(parts)
    if not logits.isfinite().all():
        raise UnusableImage("its logits have NaN or infinite entries")
    return logits
