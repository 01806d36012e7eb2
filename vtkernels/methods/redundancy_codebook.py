"""RedundancyCodebook: drop the tokens that are like those a model was found not to need."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..fused.prune_topk import prune_topk
from ..score.prototype_scores import prototype_scores
from ..score.prototype_softmax_scores import prototype_softmax_scores
from ..select.select_threshold import select_threshold
from ..select.select_topk import select_topk
from ._inputs import Inputs, Result
from ._method import Info, Method, count_of, keep
from ._registry import register

VARIANTS = ("threshold", "fix_num", "double_smx", "single_smx")


@register(Info("redundancy_codebook", "RedundancyCodebook", "arXiv 2503.20540", "selection", "projector", ("hidden",),
               "ragged", "code", "similarity"))
@dataclass(frozen=True, eq=False)
class RedundancyCodebook(Method):
    """The redundancy of a token is its largest cosine s to the prototypes p; the least redundant tokens stay.

    | variant | redundancy | what stays |
    |---|---|---|
    | "threshold" | `max_p s` | what is under the threshold: counts on the device |
    | "fix_num" | `max_p s` | the lowest `keep` |
    | "double_smx" | `max_p softmax_p(s) * softmax_tokens(s)` | the lowest `keep` |
    | "single_smx" | `max_p softmax_p(s)` | the lowest `keep` |

    Args:
        prototypes: `[P, D]` in the space of `hidden`, such as the published codebook of the model.
        variant: one of the above; "double_smx" is the authors' choice for several images and for video.
        threshold: published: 0.45 for LLaVA-1.5-7B, 0.11 for LLaVA-NeXT-8B, 0.5 for LLaVA-OneVision-7B.
        min_keep: "threshold" keeps at least this many tokens of a row.
        keep: share that stays (with "fix_num" rounded; else the share that goes is rounded), or how many.
        per_frame: each image, crop or frame keeps its own share, and softmax over its own tokens; as published. False:
            all tokens of a row compete.
        quirk_ties: of the softmax variants: tokens as redundant as the least of those that go, go too, as in the
            official code: counts on the device.

    Inputs: `grid` or `segments` for the frames. The official code numbers positions anew. Ties go to the lower
    position; NaN goes first and never passes the threshold.

    Source: Yang et al., "Beyond Intermediate States: Explaining Visual Redundancy through Language", arXiv 2503.20540;
    details as in the official code.
    """

    takes = ("grid",)

    prototypes: Tensor
    variant: str = "threshold"
    threshold: float = 0.45
    min_keep: int = 0
    keep: float | int = 0.2
    per_frame: bool = True
    quirk_ties: bool = False

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"redundancy_codebook: `variant` is {self.variant!r}, allowed: {', '.join(VARIANTS)}")

    def run(self, inputs: Inputs) -> Result:
        tokens, n = inputs.tokens, inputs.tokens.shape[1]
        prototypes = self.prototypes.to(tokens)
        if self.variant == "threshold":
            scores, _ = prototype_scores(tokens, prototypes)
            indices, counts, _ = select_threshold(scores, self.threshold, largest=False, min_keep=min(self.min_keep, n))
            return keep(inputs, indices, counts, scores)
        frames = inputs.frames if self.per_frame else (n,)
        if self.variant == "fix_num" and len(frames) == 1 and inputs.sizes is None and inputs.positions is None:
            hidden, _, indices, scores = prune_topk(tokens, prototypes, self._count(n))
            return Result(hidden, indices, scores=scores)
        scores = _per_frame(self._redundancy, frames, tokens, prototypes)
        stays = _per_frame(self._stays, frames, scores)
        if self.quirk_ties and self.variant != "fix_num":
            indices, counts, _ = select_threshold(stays, 0.5)
            return keep(inputs, indices, counts, scores)
        return keep(inputs, select_topk(stays, sum(map(self._count, frames))), scores=scores)

    def _count(self, n: int) -> int:
        if self.variant == "fix_num" or isinstance(self.keep, int):
            return count_of("redundancy_codebook", self.keep, n, n)
        return n - count_of("redundancy_codebook", 1 - self.keep, n, n)

    def _redundancy(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        if self.variant == "fix_num":
            return prototype_scores(tokens, prototypes)[0]
        return prototype_softmax_scores(tokens, prototypes, over_tokens=self.variant == "double_smx")

    def _stays(self, scores: Tensor) -> Tensor:
        """1.0 for the tokens of a frame that stay, else 0.0."""
        count, n = self._count(scores.shape[1]), scores.shape[1]
        if self.quirk_ties and self.variant != "fix_num" and count < n:
            most = select_topk(scores, n - count, order="score")[:, -1:]
            return (scores < scores.gather(1, most)).float()
        return torch.zeros_like(scores).scatter_(1, select_topk(scores, count, largest=False), 1.0)


def _per_frame(function: Any, frames: tuple[int, ...], rows: Tensor, *args: Tensor) -> Tensor:
    """`function` of the `[B, n, ..]` of every frame, side by side; equal frames in one call."""
    if len(set(frames)) == 1:
        folded = rows.reshape(-1, frames[0], *rows.shape[2:])
        return function(folded, *args).reshape(rows.shape[0], -1)
    return torch.cat([function(part, *args) for part in rows.split(frames, 1)], 1)
