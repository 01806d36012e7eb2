"""Plain torch, any device: cells by views and a copy, then a softmax over each cell."""

from torch import Tensor


def cell_attention(query: Tensor, key: Tensor, value: Tensor, grid_width: int, cell: int, *,
                   scale: float | None = None) -> Tensor:
    batch, heads, cells, d = query.shape
    columns = grid_width // cell

    def by_cell(t: Tensor) -> Tensor:  # [B, H, cells, cell * cell, d]
        grid = t.float().reshape(batch, heads, cells // columns, cell, columns, cell, d)
        return grid.transpose(3, 4).reshape(batch, heads, cells, cell * cell, d)

    logits = (by_cell(key) * query.float()[..., None, :]).sum(-1) * (d ** -0.5 if scale is None else scale)
    return (logits.softmax(-1)[..., None] * by_cell(value)).sum(-2).to(query.dtype).contiguous()
