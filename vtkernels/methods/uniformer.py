"""Neighbourhood attention on a grid: the content-dependent form of UniFormer's local relation."""

from dataclasses import dataclass

from torch import Tensor

from ..attend.patterns import MaskMod
from ._attend import attend, joined, needs_all_rows
from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("uniformer", "UniFormer (generalised)", "ICLR 2022, arXiv 2201.04676", "attention", "encoder",
               ("hidden", "vision", "grid"), "attention", "code", "none"))
@dataclass(frozen=True)
class UniFormer(Method):
    """`softmax_j(scale <q_i, k_j>) v_j` over the neighbours j of token i on a grid of frames, rows and columns: those
    at most half a window away on each axis. At a border the window is cut.

    UniFormer's own local relation is a depthwise 5 x 5 (x 5) convolution, whose affinities are learned and do not
    depend on the content; the attention here is our generalisation, and does not reproduce its weights.

    Args:
        window: frames, rows and columns of the window, odd numbers. An image has one frame.

    Inputs: `vision[-1]` with the N tokens as rows; `grid`. Result: `hidden` `[B, N, Hq * dv]` and `mask_mod`. A NaN may
    reach every token of its own row.

    Source: Li et al., "UniFormer: Unified Transformer for Efficient Spatiotemporal Representation Learning", ICLR 2022,
    arXiv 2201.04676; the window as in the official code.
    """

    kernels = False

    window: tuple[int, int, int] = (5, 5, 5)

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        layer = needs_all_rows("uniformer", "vision", inputs.vision[-1], inputs.tokens.shape[1])
        mask = neighbours(inputs.grid, self.window)
        return Result(joined(attend(layer, mask)), mask_mod=mask)


def neighbours(grid: tuple[int, int, int], window: tuple[int, int, int]) -> MaskMod:
    """The mask of the pairs of tokens that are at most `window // 2` apart on every axis of the grid.

    Raises:
        ValueError: a side of the window that is not an odd number from 1.
    """
    if any(size < 1 or size % 2 == 0 for size in window):
        raise ValueError(f"neighbours: `window` is {window}, allowed: odd numbers from 1")
    _, height, width = grid

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        frames = (query // (height * width) - key // (height * width)).abs()
        rows = (query // width % height - key // width % height).abs()
        columns = (query % width - key % width).abs()
        return (frames <= window[0] // 2) & (rows <= window[1] // 2) & (columns <= window[2] // 2)

    return mask
