"""HoliTom: merge what stands still in a video, then what is alike in a frame; and again inside the decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..compact.gather_tokens import gather_tokens
from ..compact.merge_tokens import merge_tokens
from ..score.prototype_scores import prototype_scores
from ..score.prototype_topm import prototype_topm
from ..score.temporal_scores import temporal_scores
from ..select.select_topk import select_topk
from ._inputs import Inputs, Result, Stage
from ._method import Info, Method, count_of
from ._registry import register
from ._video import density_peaks, mask_of, still_windows

SOURCE = "NeurIPS 2025, arXiv 2505.21334"


@register(Info("holitom_outer", "HoliTom (outer)", SOURCE, "selection", "projector", ("hidden", "grid", "scores"),
               "ragged", "code", "similarity"))
@dataclass(frozen=True)
class HoliTomOuter(Method):
    """Before the decoder: time, then space.

    1. A token is still from one frame to the next where their cosine is above `tau`. The frames are cut into windows
       so that the sum of `(length - 1) * (tokens still in the whole window)` is largest. A token that is still in its
       whole window becomes its mean over the window, in the window's first frame; the others stay dynamic.
    2. With the share `rho = min(keep / (tokens left / N), 1)`: each frame keeps `ceil(rho n)` of its n dynamic tokens,
       the share `contextual` of them (rounded off) as clusters of those that the best by `scores` leave over; the m
       still tokens of a window become `round(rho m)` clusters. Clusters are those of density peaks
       (`cluster_density_peaks`), a cluster's token is `beta * centre + (1 - beta) * mean of its members`.

    Args:
        keep: share of the tokens that stays, about: every frame rounds by itself.
        tau: cosine above which a token is still.
        contextual: share of a frame's dynamic tokens that are clusters.
        beta: weight of a cluster's centre; 0 for plain means.
        neighbours: of the density.

    Inputs: `scores`, the attention that each token gets in the encoder's last layer, mean over heads and queries of
    its frame (`Attention.scores`). Result: `hidden` `[B, keep N + 2 F, D]` with `counts` on the device, by frame and
    place; a merged token has the place of its centre. Of equally good cuts the one with the shorter last windows is
    taken; other ties go to the lower position. NaN is never still, ranks last, and spoils no other row.

    Source: Shao et al., NeurIPS 2025, arXiv 2505.21334; details as in the official code, which adds noise to the
    densities and, of several videos in a batch, lets one change the ratio of the next.
    """

    keep: float = 0.25
    tau: float = 0.8
    contextual: float = 0.0
    beta: float = 0.6
    neighbours: int = 7

    def run(self, inputs: Inputs) -> Result:
        tokens, grid, scores = inputs.tokens, inputs.grid, inputs.scores
        assert grid is not None
        assert scores is not None
        if not 0 <= self.keep <= 1 or not 0 <= self.contextual <= 1:
            raise ValueError(f"holitom_outer: `keep`, `contextual` is {self.keep}, {self.contextual}, allowed: shares "
                             "from 0.0 to 1.0")
        (batch, total, width), frames = tokens.shape, grid[0]
        n = total // frames
        same = temporal_scores(tokens.unflatten(1, (frames, n))) > self.tau
        place = (still_windows(same) * n + torch.arange(n, device=tokens.device)).flatten(1)
        merged, sizes = merge_tokens(tokens, place, total)  # the places that were left are empty

        left = (sizes > 0).sum(1)[:, None].double()
        share = (self.keep / (left / total)).clamp(max=1)
        still, moving = ((sizes > 1).view(batch, frames, n), (sizes == 1).view(batch, frames, n))
        clusters = (still.sum(2) * share).round()
        kept = (moving.sum(2) * share).ceil()
        dominant = (kept * (1 - self.contextual)).round()

        flat = (batch * frames, n)
        best = select_topk(scores.reshape(flat), n, ks=dominant.view(-1).int(), excluded=~moving.view(flat))
        lead = mask_of(best, n)
        # Each frame is a group of prototypes: [n, B F, D] against [B F, n, D].
        video = merged.view(*flat, width).float()
        closeness, near = prototype_topm(video.transpose(0, 1), video, n, metric="l2")
        distance, near = (-closeness / width).transpose(0, 1).contiguous(), near.transpose(0, 1).contiguous()
        head = torch.where(lead, torch.arange(n, device=tokens.device), -1)
        groups = [(still.view(flat), clusters)]
        if self.contextual:
            groups.append((moving.view(flat) & ~lead, kept - dominant))
        for members, count in groups:
            joined = density_peaks(distance, near, members, count.view(-1).int(), self.neighbours)
            head = torch.where(members, joined, head)

        first = torch.arange(0, total, n, device=tokens.device).repeat(batch)[:, None]
        head = torch.where(head < 0, -1, head + first).view(batch, total)
        heads = head == torch.arange(total, device=tokens.device)
        counts = heads.sum(1)
        rows = min(total, int(self.keep * total) + 2 * frames)  # a frame rounds up once, a window by half at most
        indices = select_topk(heads.float(), rows, ks=counts.int())
        assignment = torch.where(head < 0, -1, (heads.cumsum(1) - 1).gather(1, head.clamp_min(0)))
        means, _ = merge_tokens(merged, assignment, rows)
        (centres,) = gather_tokens([merged], indices)
        positions = None if inputs.positions is None else gather_tokens([inputs.positions], indices)[0]
        return Result(means + self.beta * (centres - means), indices, counts.int(), assignment.gather(1, place),
                      positions=positions, scores=scores)


@register(Info("holitom_inner", "HoliTom (inner)", SOURCE, "selection", "decoder layer", ("hidden", "decoder"),
               "merged", "code", "attention"))
@dataclass(frozen=True)
class HoliTomInner(Method):
    """The tokens that the last row of the prompt looks at stay, mean over heads; each of the others goes into the kept
    token with the largest cosine, which becomes the mean of itself and all that came to it.

    Args:
        keep: share of the tokens that stays (rounded), or how many.
        layer: decoder layers before it.
        quirk_running_average: as in the official code, the tokens come one by one, in ascending order, and each is
            averaged half and half, `kept = (kept + token) / 2`: the last one counts most. Cosines are of the tokens
            before any merge.

    Inputs: `decoder[-1]` of layer `layer - 1`, of which the last row counts; `original` where layers before it dropped
    some. Ties go to the lower position, NaN ranks last.

    Source: Shao et al., NeurIPS 2025, arXiv 2505.21334; details as in the official code.
    """

    keep: float | int = 0.5
    layer: int = 18
    quirk_running_average: bool = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer, self.keep),)

    def run_stage(self, inputs: Inputs, stage: Stage) -> Result:
        tokens = inputs.tokens
        n = tokens.shape[1]
        scores = inputs.decoder[-1].last_rows().scores(n)
        count = count_of("holitom_inner", stage.keep, inputs.original or n, n)
        indices = select_topk(scores, count)
        aligned = gather_tokens([tokens, *([] if inputs.positions is None else [inputs.positions])], indices)
        positions = aligned[1] if len(aligned) > 1 else None
        if count == 0:
            return Result(aligned[0], indices, positions=positions, scores=scores)
        # The kept tokens of each row are its prototypes: [N, B, D] against [B, K, D].
        _, nearest = prototype_scores(tokens.transpose(0, 1), aligned[0])
        own = torch.arange(count, device=tokens.device).expand_as(indices)
        assignment = nearest.T.scatter(1, indices, own)
        weights = _halves(assignment, indices, count) if self.quirk_running_average else None
        hidden, sizes = merge_tokens(tokens, assignment, count, weights=weights)
        return Result(hidden, indices, assignment=assignment, positions=positions, scores=scores,
                      sizes=None if self.quirk_running_average else sizes)


def _halves(assignment: Tensor, kept: Tensor, count: int) -> Tensor:
    """The weight of each token after all the halving, `[B, N]`: `2^-(1 + later ones)`; of a kept one `2^-all`."""
    n = assignment.shape[1]
    coming = assignment.scatter(1, kept, count)  # kept tokens stand behind all groups
    group, order = coming.sort(dim=1, stable=True)
    after = torch.searchsorted(group, group, right=True) - torch.arange(n, device=group.device)  # 1 + later ones
    halvings = torch.empty_like(order).scatter(1, order, after)
    targets = torch.arange(count, device=group.device).repeat(group.shape[0], 1)
    members = torch.searchsorted(group, targets, right=True) - torch.searchsorted(group, targets)
    return (0.5 ** torch.arange(n + 1, device=group.device))[halvings.scatter(1, kept, members)]
