"""RedundancyCodebook image by image: every similarity stored, the kept tokens taken by a mask."""

from typing import Any

import torch
from torch import Tensor

from vtkernels.methods import Inputs, Result

from . import kept, padded, stack

PROTOTYPES = torch.randn(7, 16, generator=torch.Generator().manual_seed(1))
CONFIGS: dict[str, dict[str, Any]] = {
    "threshold": {"threshold": 0.3},
    "threshold_min_keep": {"threshold": 0.2, "min_keep": 9},
    "fix_num": {"variant": "fix_num", "keep": 0.3},
    "fix_num_whole": {"variant": "fix_num", "keep": 0.3, "per_frame": False},
    "double_smx": {"variant": "double_smx", "keep": 0.3},
    "double_smx_whole": {"variant": "double_smx", "keep": 0.3, "per_frame": False},
    "double_smx_quirk": {"variant": "double_smx", "keep": 0.3, "quirk_ties": True},
    "single_smx": {"variant": "single_smx", "keep": 5},
    "single_smx_quirk": {"variant": "single_smx", "keep": 0.4, "quirk_ties": True},
}
VARIANTS = {name: {"prototypes": PROTOTYPES, **config} for name, config in CONFIGS.items()}
TYPICAL = {"prototypes": torch.randn(454, 4096, generator=torch.Generator().manual_seed(1)), "threshold": 0.05}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """Equal frames; unequal crops for "odd"."""
    n, width = {"small": (36, 16), "odd": (53, 16), "typical": (576, 4096)}[size]
    hidden = torch.randn(batch, n, width, generator=generator)
    if size == "typical":
        return Inputs(hidden=hidden)
    if size == "small":
        return Inputs(hidden=hidden, grid=(2, 3, 6))
    return Inputs(hidden=hidden, segments=(20, 33), positions=torch.arange(n).expand(batch, n))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    n = inputs.tokens.shape[1]
    frames = inputs.frames if method.per_frame else (n,)
    ragged = method.variant == "threshold" or method.quirk_ties
    results = []
    for row, tokens in enumerate(inputs.tokens):
        redundancy, masks = [], []
        for frame in tokens.split(frames):
            redundancy.append(redundancies(frame, method))
            masks.append(stays(redundancy[-1], method))
        scores, mask = torch.cat(redundancy), torch.cat(masks)
        indices = mask.nonzero()[:, 0]
        if method.variant == "threshold" and len(indices) < method.min_keep:
            indices = scores.topk(method.min_keep, largest=False).indices.sort().values
        results.append(padded(inputs, row, indices, n, scores=scores[None]) if ragged
                       else kept(inputs, row, indices, scores=scores[None]))
    return stack(results)


def redundancies(frame: Tensor, method: Any) -> Tensor:
    prototypes = method.prototypes.to(frame)
    unit = frame / frame.norm(dim=1, keepdim=True).clamp_min(1e-12)
    similarity = unit @ (prototypes / prototypes.norm(dim=1, keepdim=True).clamp_min(1e-12)).T
    if method.variant == "double_smx":
        similarity = similarity.softmax(0) * similarity.softmax(1)
    elif method.variant == "single_smx":
        similarity = similarity.softmax(1)
    return similarity.max(1).values


def stays(scores: Tensor, method: Any) -> Tensor:
    """The mask of a frame."""
    n = len(scores)
    if method.variant == "threshold":
        return scores < method.threshold
    if method.variant == "fix_num":
        mask = torch.zeros(n, dtype=torch.bool)
        mask[scores.argsort()[:round(method.keep * n)].sort().values] = True
        return mask
    go = n - method.keep if isinstance(method.keep, int) else round(n * (1 - method.keep))
    return scores < scores.topk(go).values[-1]
