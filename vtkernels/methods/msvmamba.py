"""MSVMamba: the orders in which its scans read a feature map, most of them at half the resolution."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..compact.gather_tokens import gather_tokens
from ..compact.pool_span import pool_span
from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("msvmamba", "MSVMamba, scan order", "NeurIPS 2024, arXiv 2405.14174", "other", "other",
               ("hidden", "grid"), "other", "code", "transformation"))
@dataclass(frozen=True, eq=False)
class MSVMamba(Method):
    """The sequence of the multi-scale branch: the map at half the resolution, read in reverse raster order, by columns,
    and by columns in reverse, one reading after the other, for one selective scan. (The branch at full resolution reads
    `hidden` as it is.)

    Args:
        down: what halves the resolution, called with `[B, N, D]`, rows and columns; returns `[B, N / 4, D]`. In the
            model it is a learned depthwise convolution. None: the mean of 2 x 2 tokens.

    Inputs: `hidden`, `grid` of one frame with even sides. Result: `hidden` `[B, 3 * N / 4, D]`. `unscan` is the way
    back. The selective scan itself is not part of this package, and no token is dropped.

    Source: Shi et al., "Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model", NeurIPS 2024, arXiv
    2405.14174; details as in the official code.
    """

    down: Callable[[Tensor, int, int], Tensor] | None = None

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        frames, rows, columns = inputs.grid
        if frames != 1 or rows % 2 or columns % 2:
            raise ValueError(f"msvmamba: `inputs.grid` is {inputs.grid}, allowed: (1, rows, columns), both even")
        small = (pool_span(inputs.tokens, 2, grid_width=columns) if self.down is None
                 else self.down(inputs.tokens, rows, columns))
        order = scan_orders(rows // 2, columns // 2, small.device).flatten()
        return Result(gather_tokens([small], order.expand(small.shape[0], -1))[0])


def scan_orders(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """`[3, rows * columns]` int64: the tokens of a map in reverse raster order, by columns, by columns in reverse."""
    raster = torch.arange(rows * columns, device=device)
    by_columns = raster.view(rows, columns).T.flatten()
    return torch.stack([raster.flip(0), by_columns, by_columns.flip(0)])


def unscan(scanned: Tensor, rows: int, columns: int) -> Tensor:
    """What the scan made of the sequence, put back on the map: the sum of the three readings, at full resolution.

    Args:
        scanned: `[B, 3 * N / 4, D]`, in the order of `MSVMamba`.
        rows, columns: of the full map, N tokens.

    Returns:
        `[B, N, D]`, bilinear between the tokens of the half map, to be added to the branch at full resolution.
    """
    small = (rows // 2, columns // 2)
    if scanned.shape[1] != 3 * small[0] * small[1]:
        raise ValueError(f"unscan: `scanned` has {scanned.shape[1]} tokens, allowed: {3 * small[0] * small[1]} "
                         f"(a map of {rows} x {columns})")
    back = scan_orders(*small, scanned.device).argsort(1)  # [3, N / 4]
    readings = scanned.unflatten(1, (3, -1))
    total = sum(gather_tokens([readings[:, i]], back[i].expand(scanned.shape[0], -1))[0] for i in range(3))
    assert isinstance(total, Tensor)
    picture = total.transpose(1, 2).unflatten(2, small)
    return F.interpolate(picture, (rows, columns), mode="bilinear").flatten(2).transpose(1, 2)
