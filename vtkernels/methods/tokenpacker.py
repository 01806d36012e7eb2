"""TokenPacker: coarse queries that look at the fine tokens of their own cell."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attend.cell_attention import cell_attention
from ._inputs import Inputs, Result
from ._linear import Linear
from ._method import Info, Method
from ._registry import register


def coarse_grid(tokens: Tensor, grid_width: int, scale: int) -> Tensor:
    """Bilinear downsampling of a grid by `scale` (corners not aligned, no antialiasing), computed in float32.

    `[B, N, D]` in raster order to `[B, N / scale^2, D]`. A sample lies on the central token of its cell, or in the
    middle of the central four.
    """
    grid = tokens.unflatten(1, (-1, scale, grid_width // scale, scale)).float()
    low, high = (scale - 1) // 2, scale // 2
    taps = [grid[:, :, y, :, x] for y in (low, high) for x in (low, high)]
    return ((taps[0] + taps[1] + taps[2] + taps[3]) / 4).flatten(1, 2).to(tokens.dtype)


class RegionToPoint(nn.Module):
    """The projector of TokenPacker.

    Args:
        width: channels of one level of the vision encoder, which are those of the queries, keys and values, too.
        levels: layers whose states stand side by side in the tokens, the last one giving the queries.
        out: width of the language model.
        heads: of the attention.
        scale: tokens on a side of a cell.

    Called with tokens `[B, N, levels * width]` and the columns of their grid, a multiple of `scale`, it returns
    `[B, N / scale^2, out]`.
    """

    def __init__(self, width: int = 1024, levels: int = 4, out: int = 4096, heads: int = 8, scale: int = 2) -> None:
        super().__init__()

        def mlp(channels: int, hidden: int) -> nn.Sequential:
            return nn.Sequential(Linear(channels, hidden), nn.GELU(), Linear(hidden, hidden))

        self.width, self.heads, self.scale = width, heads, scale
        self.q_proj = nn.Sequential(Linear(width, width, bias=False), nn.LayerNorm(width))
        self.k_proj = nn.Sequential(mlp(levels * width, width), nn.LayerNorm(width))
        self.v_proj = nn.Sequential(mlp(levels * width, width), nn.LayerNorm(width))
        self.in_q, self.in_k, self.in_v, self.out_proj = (Linear(width, width) for _ in range(4))
        self.mlp = mlp(width, out)

    def forward(self, tokens: Tensor, grid_width: int) -> Tensor:
        query = self.in_q(self.q_proj(coarse_grid(tokens[..., -self.width:], grid_width, self.scale)))
        key, value = self.in_k(self.k_proj(tokens)), self.in_v(self.v_proj(tokens))
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        points = cell_attention(q, k, v, grid_width, self.scale).transpose(1, 2).flatten(2)
        return self.mlp(self.out_proj(points))


@register(Info("tokenpacker", "TokenPacker", "IJCV 2025, arXiv 2407.02392", "merging", "projector",
               ("hidden", "grid"), "merged", "code", "query"))
@dataclass(frozen=True)
class TokenPacker(Method):
    """Region-to-point attention: the grid is halved (or more) bilinearly, and each coarse token, as query, attends to
    the `scale^2` fine tokens of its cell: `MLP(MHA(LN(W_q x'), LN(MLP_k X), LN(MLP_v X)))`. X are the states of several
    layers of the encoder side by side in the channels, x those of the last of them.

    Args:
        projector: a `RegionToPoint`, or a module of the same call, `projector(hidden, grid_width)`, and with `scale`.

    Inputs: `hidden` `[B, N, levels * width]`, the 12th, 16th, 22nd and 23rd layer of CLIP-L in the paper; the frames of
    `grid` are crops. The coarse query is not added to the output, as in the official code (the figure of the paper
    shows it injected). For inference: parameters must not require a gradient, or run under `torch.no_grad()`. What a
    NaN touches is its cell, and the cell's query.

    Raises:
        ValueError: a side of `grid` that is no multiple of the scale.

    Source: Li et al., "TokenPacker: Efficient Visual Projector for Multimodal LLM", IJCV 2025, arXiv 2407.02392;
    details as in the official code.
    """

    projector: nn.Module

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        (batch, n, _), (_, rows, columns) = inputs.tokens.shape, inputs.grid
        scale = int(self.projector.scale)  # type: ignore[arg-type]
        if rows % scale or columns % scale:
            raise ValueError(f"tokenpacker: `inputs.grid` is {inputs.grid}, allowed: sides of a multiple of {scale}")
        place = torch.arange(n, device=inputs.tokens.device)
        cell = place // (columns * scale) * (columns // scale) + place % columns // scale
        return Result(self.projector(inputs.tokens, columns), assignment=cell.expand(batch, -1))
