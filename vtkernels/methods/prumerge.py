"""LLaVA-PruMerge and PruMerge+: outliers of the CLS attention stay and take up their neighbours."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..score.prototype_topm import prototype_topm
from ..select.select_threshold import select_threshold
from ._inputs import Attention, Inputs, Result
from ._method import Info, Method
from ._registry import register


def full_width(layer: Attention) -> Attention:
    """The heads side by side as one head of the full width."""
    query, key = (t.transpose(1, 2).flatten(2)[:, None] for t in (layer.query, layer.key))
    return replace(layer, query=query, key=key, value=None, lse=None, scale=None)


def upper_fence(scores: Tensor, factor: float) -> Tensor:
    """`[B]`: `Q3 + factor (Q3 - Q1)` of each row, the quartiles interpolated linearly; NaN for a row with one."""
    ordered = scores.sort(dim=1).values
    quartiles = []
    for share in (0.25, 0.75):
        place = share * (scores.shape[1] - 1)
        low = ordered[:, int(place)]
        quartiles.append(low + (ordered[:, min(int(place) + 1, scores.shape[1] - 1)] - low) * (place - int(place)))
    fence = quartiles[1] + factor * (quartiles[1] - quartiles[0])
    return torch.where(ordered[:, -1].isnan(), torch.nan, fence)


@register(Info("prumerge", "LLaVA-PruMerge", "ICCV 2025, arXiv 2403.15388", "merging", "projector",
               ("hidden", "vision"), "ragged", "code", "attention"))
@dataclass(frozen=True)
class PruMerge(Method):
    """With `a = softmax(q_cls K^T / sqrt(D))` over the full width D of the heads side by side, the tokens stay whose a
    is above `Q3 + 1.5 (Q3 - Q1)`. Each of them becomes `x_i + sum_j a_j x_j` over the `neighbours` other tokens, kept
    or not, with the most similar keys (cosine). One token more, the last, is `sum_j a_j x_j` over all dropped ones.

    Args:
        neighbours: tokens that each kept one takes up, at most N - 1.
        fence: factor of the interquartile range, at least 0.

    Inputs: `vision[-1]` (in LLaVA its last layer but one), the query of which is the CLS row. `counts` are the kept
    tokens and one more, at most (N + 2) // 4 + 1; the quartiles are those of each image (the official code pools the
    batch). `assignment` leads kept tokens to their own row and dropped ones to the last; there are no `indices`, as the
    last row stands nowhere. Products of the merge are in float32. Ties among neighbours go to the lower position; a NaN
    among the attention keeps nothing, one in `hidden` spreads over its image.

    Source: Shang et al., "LLaVA-PruMerge", ICCV 2025, arXiv 2403.15388; details as in the official code.
    """

    neighbours: int = 32
    fence: float = 1.5

    def __post_init__(self) -> None:
        if self.fence < 0:
            raise ValueError(f"{self.info.name}: `fence` is {self.fence}, allowed: 0 or more")

    def most(self, n: int) -> int:
        """No more of n tokens can be above the third quartile."""
        return (n + 2) // 4

    def chosen(self, outlier: Tensor, count: Tensor) -> Tensor:
        """`[B, N]` float32, 1 for the tokens that stay, from the outliers and how many there are `[B, 1]`."""
        return outlier

    def run(self, inputs: Inputs) -> Result:
        layer, (batch, n, _) = full_width(inputs.vision[-1]), inputs.tokens.shape
        scores = layer.scores(n)
        above = (scores > upper_fence(scores, self.fence)[:, None]).float()
        chosen = self.chosen(above, above.sum(1, keepdim=True).long())
        indices, counts, _ = select_threshold(chosen, 0.5)
        indices = indices[:, :self.most(n)]
        rows = indices.shape[1]

        keys = layer.key[:, 0, layer.start:layer.start + n]
        own = indices.clamp(min=0)[..., None]  # [B, rows, 1]
        m = min(self.neighbours, n - 1)
        asking = keys.gather(1, own.expand(-1, -1, keys.shape[2])).transpose(0, 1)
        nearest = prototype_topm(asking, keys, m + 1)[1].transpose(0, 1)  # [B, rows, m + 1], mostly with itself
        itself = nearest == own
        itself[..., -1] |= ~itself.any(-1)
        taken = scores.unsqueeze(1).expand(-1, rows, -1).gather(2, nearest).masked_fill(itself, 0.0)

        # What goes where, [B, rows + 1, N]: kept tokens with what they take up, then the sum of the dropped ones.
        share = taken.new_zeros(batch, rows + 1, n)
        share[:, :rows].scatter_(2, nearest, taken).scatter_(2, own, 1.0)
        row = torch.arange(rows + 1, device=share.device)
        last = (row == counts[:, None])[..., None]
        share = torch.where(last, (scores * (1 - chosen))[:, None], share)
        share = share.masked_fill((row > counts[:, None])[..., None], 0.0)
        hidden = torch.bmm(share, inputs.tokens.float()).to(inputs.tokens.dtype)
        hidden = hidden.masked_fill((row > counts[:, None])[..., None], 0.0)
        place = torch.where(chosen > 0, chosen.cumsum(1).long() - 1, counts[:, None].long())
        return Result(hidden, counts=counts + 1, assignment=place, scores=scores)
