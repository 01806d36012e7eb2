"""QuoTA: tokens of each frame by its relevance to the question."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..compact.gather_tokens import gather_tokens
from ..select.allocate_budget import allocate_budget
from ._inputs import Inputs, Result
from ._method import Info, Method, count_of, keep
from ._registry import register

RESIZE = ("bilinear", "average", "subsample")


@register(Info("quota", "QuoTA", "arXiv 2503.08689", "selection", "projector", ("hidden", "grid", "frame_scores"),
               "ragged", "code", "query"))
@dataclass(frozen=True)
class QuoTA(Method):
    """A video's tokens are split over its frames in proportion to `(100 p)^2`, with p the relevance of the frame; each
    frame is resized to its budget b.

    - `resize="bilinear"` (version 1): to h x w tokens with `h = floor(sqrt b)` and w = h, or h + 1 where that fits.
    - `resize="average"` (version 2): adaptive mean pooling to the same sizes.
    - `resize="subsample"` (version 3): b tokens at even steps, `q (n - 1) // (b - 1)` of n.

    Args:
        keep: tokens of the whole video, or their share (rounded).
        resize: one of the three.

    Inputs: `hidden`, `grid`, and `frame_scores`, p from 0 to 1. Result: `hidden` `[B, keep, D]` in the order of the
    frames, `counts` on the device; `indices` and `positions` where tokens are chosen and not mixed. The budgets add up
    to `keep` exactly by largest remainder (the official code rounds each down), and except for "bilinear" a frame gets
    at most the tokens that it has, the excess going to the others. A NaN relevance weighs nothing. With "average" a
    NaN or an infinity spoils its frame. Versions 4 and 5, which merge similar tokens of a frame, are not built.

    Source: Luo et al., "QuoTA: Query-oriented Token Assignment via CoT Query Decouple for Long Video Comprehension",
    arXiv 2503.08689; details as in the official code.
    """

    keep: float | int = 12544
    resize: str = "bilinear"

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        assert inputs.frame_scores is not None
        batch, total, _ = inputs.tokens.shape
        frames, rows, columns = inputs.grid
        if tuple(inputs.frame_scores.shape) != (batch, frames):
            raise ValueError(f"quota: `inputs.frame_scores` is of shape {tuple(inputs.frame_scores.shape)}, allowed: "
                             f"{batch, frames} (those of `inputs.hidden` and `inputs.grid`)")
        if self.resize not in RESIZE:
            raise ValueError(f"quota: `resize` is {self.resize!r}, allowed: {', '.join(map(repr, RESIZE))}")
        n, count = rows * columns, count_of("quota", self.keep, total, total)
        weights = (100 * inputs.frame_scores.float()).square()
        capacity = None if self.resize == "bilinear" else torch.full_like(weights, n, dtype=torch.int32)
        budgets = allocate_budget(weights, count, capacity=capacity).long()
        if self.resize == "subsample":
            frame, place = _slots(budgets, count)
            steps = (budgets - 1).clamp_min(1).gather(1, frame.clamp_min(0))
            indices = torch.where(frame < 0, -1, frame * n + place * (n - 1) // steps)
            return keep(inputs, indices, budgets.sum(1).int())
        height = budgets.double().sqrt().long()
        width = height + (height * (height + 1) <= budgets)
        frame, place = _slots(height * width, count)
        h, w = (side.gather(1, frame.clamp_min(0)).clamp_min(1) for side in (height, width))
        resized = _bilinear if self.resize == "bilinear" else _average
        hidden = resized(inputs.tokens, inputs.grid, frame, place // w, place % w, h, w)
        return Result(hidden, counts=(height * width).sum(1).int())


def _slots(sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The frame (-1 past the last) and the place in it of each of `count` output rows, `[B, count]`."""
    ends = sizes.cumsum(1)
    slot = torch.arange(count, device=sizes.device).repeat(sizes.shape[0], 1)
    frame = torch.searchsorted(ends, slot, right=True)
    used = frame < sizes.shape[1]
    place = slot - (ends - sizes).gather(1, frame.clamp(max=sizes.shape[1] - 1))
    return torch.where(used, frame, -1), torch.where(used, place, 0)


def _bilinear(tokens: Tensor, grid: tuple[int, int, int], frame: Tensor, row: Tensor, column: Tensor, h: Tensor,
              w: Tensor) -> Tensor:
    """Interpolation at the centres of the new cells, edges repeated (`align_corners=False`)."""
    def around(place: Tensor, new: Tensor, old: int) -> tuple[Tensor, Tensor, Tensor]:
        centre = ((place + 0.5) * old / new - 0.5).clamp_min(0)
        low = centre.long()
        return low, (low + 1).clamp(max=old - 1), (centre - low).to(tokens.dtype)[..., None]

    def at(y: Tensor, x: Tensor) -> Tensor:
        return gather_tokens([tokens], torch.where(frame < 0, -1, (frame * grid[1] + y) * grid[2] + x))[0]

    top, bottom, down = around(row, h, grid[1])
    left, right, across = around(column, w, grid[2])
    above, below = (at(y, left).lerp_(at(y, right), across) for y in (top, bottom))
    return above.lerp_(below, down)


def _average(tokens: Tensor, grid: tuple[int, int, int], frame: Tensor, row: Tensor, column: Tensor, h: Tensor,
             w: Tensor) -> Tensor:
    """Means over rows `floor(r H / h)` to `ceil((r + 1) H / h)` and the same columns, by a summed-area table."""
    sums = tokens.double().unflatten(1, grid).cumsum(2).cumsum(3)
    table = torch.nn.functional.pad(sums, (0, 0, 1, 0, 1, 0)).flatten(1, 3)
    top, bottom = row * grid[1] // h, -((row + 1) * grid[1] // -h)
    left, right = column * grid[2] // w, -((column + 1) * grid[2] // -w)

    def at(y: Tensor, x: Tensor) -> Tensor:
        place = (frame * (grid[1] + 1) + y) * (grid[2] + 1) + x
        return gather_tokens([table], torch.where(frame < 0, -1, place))[0]

    area = ((bottom - top) * (right - left))[..., None]
    total = at(bottom, right) - at(top, right) - at(bottom, left) + at(top, left)
    return (total / area).to(tokens.dtype)
