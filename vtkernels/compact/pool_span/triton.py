"""One program per row of the output and block of its width: the mean of a window, or one token unchanged."""

import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ..._contracts.windows import windows
from ...tuning import lookup


@triton.jit(do_not_specialize=["token_batch", "token_stride", "dim_stride", "out_batch", "out_row", "start", "rows",
                               "columns", "height", "across", "grid_rows", "grid_columns", "width", "blocks",
                               "row_count"])
def pool_kernel(tokens, token_batch: tl.int64, token_stride: tl.int64, dim_stride: tl.int64, out, out_batch: tl.int64,
                out_row: tl.int64, start: tl.int64, rows: tl.int64, columns: tl.int64, height: tl.int64,
                across: tl.int64, grid_rows: tl.int64, grid_columns: tl.int64, width: tl.int64, blocks: tl.int64,
                row_count: tl.int64, DENSE: tl.constexpr, BLOCK: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    block = item % blocks
    row = item // blocks % row_count
    batch = item // blocks // row_count
    window = row - start
    windows = grid_rows * grid_columns
    y = window // grid_columns * height
    x = window % grid_columns * across
    pooled = (window >= 0) & (window < windows)
    members_down = tl.where(pooled, tl.minimum(height, rows - y), 1)
    members_across = tl.where(pooled, tl.minimum(across, columns - x), 1)
    token = tl.where(pooled, start + y * columns + x, tl.where(window < 0, row, row - windows + rows * columns))

    column = block * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    inside = column < width
    source = tokens + batch * token_batch + token * token_stride
    target = out + batch * out_batch + row * out_row
    if DENSE:
        source = tl.multiple_of(source, 16)
        target = tl.multiple_of(target, 16)
        source += column
    else:
        source += column * dim_stride
    first = tl.load(source, mask=inside, other=0.0)
    count = members_down * members_across
    if count == 1:
        tl.store(target + column, first, mask=inside)
    else:
        total = first.to(tl.float32)
        for member in range(1, count):
            place = member // members_across * columns + member % members_across
            total += tl.load(source + place * token_stride, mask=inside, other=0.0).to(tl.float32)
        tl.store(target + column, total / count.to(tl.float32), mask=inside)


def pool_span_out(tokens: Tensor, window: int, *, window_width: int = 0, grid_width: int = 0, span_start: int = 0,
                  span_len: int = -1, ceil: bool = False, out: Tensor) -> None:
    if out.numel() == 0:
        return
    batch, n, width = tokens.shape
    w = windows("pool_span", tokens, n, window, window_width, grid_width, span_start, span_len, ceil)
    config = lookup.config("pool_span", _triton.device_name(tokens.device), tokens.dtype, d=width)
    blocks = triton.cdiv(width, config["block_d"])
    dense = _triton.aligned16(tokens, *tokens.stride()[:2]) and _triton.aligned16(out, *out.stride()[:2])
    _triton.launch(pool_kernel, batch * out.shape[1] * blocks, tokens.device, tokens, *tokens.stride(), out,
                   *out.stride()[:2], w.start, w.rows, w.columns, w.height, w.width, *w.grid, width, blocks,
                   out.shape[1], DENSE=dense, BLOCK=config["block_d"], num_warps=config["num_warps"],
                   num_stages=config["num_stages"])
