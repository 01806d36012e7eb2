"""Plain torch, any device: the members of all windows added place by place, in float32."""

import torch
from torch import Tensor

from ..._contracts.windows import Windows, windows


def members(w: Windows, device: torch.device) -> Tensor:
    """[window rows, window columns] number of tokens in each window; those at the end may be smaller."""
    rows, columns = (torch.arange(0, size, step, device=device) for size, step in ((w.rows, w.height),
                                                                                  (w.columns, w.width)))
    return (w.rows - rows).clamp(max=w.height)[:, None] * (w.columns - columns).clamp(max=w.width)


def pool_span(tokens: Tensor, window: int, *, window_width: int = 0, grid_width: int = 0, span_start: int = 0,
              span_len: int = -1, ceil: bool = False) -> Tensor:
    batch, n, width = tokens.shape
    w = windows("pool_span", tokens, n, window, window_width, grid_width, span_start, span_len, ceil)
    grid = tokens[:, w.start:w.start + w.length].reshape(batch, w.rows, w.columns, width)
    first = grid[:, ::w.height, ::w.width]
    sums = torch.zeros(first.shape, device=tokens.device)
    for i in range(min(w.height, w.rows)):
        for j in range(min(w.width, w.columns)):
            part = grid[:, i::w.height, j::w.width].float()
            sums[:, :part.shape[1], :part.shape[2]] += part
    count = members(w, tokens.device)[..., None]
    pooled = torch.where(count == 1, first, (sums / count).to(tokens.dtype))
    return torch.cat([tokens[:, :w.start], pooled.flatten(1, 2), tokens[:, w.start + w.length:]], 1)
