"""Both shuffles as one copy of [batch, window rows, window columns, rows in a window, columns in it, channels]."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _triton
from ..tuning import lookup

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit(do_not_specialize=["source_batch", "source_down", "source_right", "source_y", "source_x", "source_c",
                               "target_batch", "target_down", "target_right", "target_y", "target_x", "target_c",
                               "rows", "columns", "factor", "channels", "blocks"])
def shuffle_kernel(source, source_batch: tl.int64, source_down: tl.int64, source_right: tl.int64, source_y: tl.int64,
                   source_x: tl.int64, source_c: tl.int64, target, target_batch: tl.int64, target_down: tl.int64,
                   target_right: tl.int64, target_y: tl.int64, target_x: tl.int64, target_c: tl.int64, rows: tl.int64,
                   columns: tl.int64, factor: tl.int64, channels: tl.int64, blocks: tl.int64, PARTS: tl.constexpr,
                   DENSE: tl.constexpr, BLOCK: tl.constexpr):
    """One program per window and block of channels. An element is PARTS units, which lie together."""
    item = tl.program_id(0).to(tl.int64)
    block = item % blocks
    right = item // blocks % columns
    down = item // blocks // columns % rows
    batch = item // blocks // columns // rows
    source += batch * source_batch + down * source_down + right * source_right
    target += batch * target_batch + down * target_down + right * target_right
    unit = block * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    inside = unit < channels * PARTS
    channel = unit // PARTS
    if DENSE:
        source_unit = unit
        target_unit = unit
    else:
        source_unit = channel * source_c + unit % PARTS
        target_unit = channel * target_c + unit % PARTS
    for y in range(factor):
        for x in range(factor):
            units = tl.load(source + y * source_y + x * source_x + source_unit, mask=inside)
            tl.store(target + y * target_y + x * target_x + target_unit, units, mask=inside)


def _pointer(t: Tensor, unit: int) -> Tensor:
    """Where the bytes begin, as integers of `unit` bytes."""
    return t.as_strided((max(1, unit // t.element_size()),), (1,)).view(INTEGERS[unit])


def _fine(strides: tuple[int, ...], grid_width: int, factor: int) -> tuple[int, ...]:
    batch, token, channel = strides
    return batch, factor * grid_width * token, factor * token, grid_width * token, token, channel


def _coarse(strides: tuple[int, ...], rows: int, columns: int, factor: int, channels: int,
            order: str) -> tuple[int, ...]:
    batch, token, channel = strides
    down, right = (token, rows * token) if order == "window_transposed" else (columns * token, token)
    if order == "channel":
        return batch, down, right, factor * channel, channel, factor * factor * channel
    return batch, down, right, factor * channels * channel, channels * channel, channel


def shuffle(fine: Tensor, coarse: Tensor, grid_width: int, factor: int, order: str, unshuffle: bool) -> None:
    """Copy `fine` into `coarse`, or back."""
    if fine.numel() == 0:
        return
    batch, n, channels = fine.shape
    columns = grid_width // factor
    rows = n // (columns * factor * factor)
    fine_strides = _fine(fine.stride(), grid_width, factor)
    coarse_strides = _coarse(coarse.stride(), rows, columns, factor, channels, order)
    size = fine.element_size()
    if channels == 1:
        fine_strides, coarse_strides = (*fine_strides[:-1], 1), (*coarse_strides[:-1], 1)
    dense = fine_strides[-1] == coarse_strides[-1] == 1
    # Rows of channels that lie together are moved by the widest integers, others element by element (two for 16 bytes).
    multiples = [t.data_ptr() for t in (fine, coarse)] + [t.storage_offset() * size for t in (fine, coarse)]
    multiples += [channels * size, *(s * size for s in (*fine_strides[:-1], *coarse_strides[:-1]))]
    unit = next(u for u in (8, 4, 2, 1) if not any(m % u for m in multiples)) if dense else min(size, 8)
    channels, parts = (channels * size // unit, 1) if dense else (channels, size // unit)
    op = "unshuffle_tokens" if unshuffle else "shuffle_tokens"
    config = lookup.config(op, _triton.device_name(fine.device), torch.float32, d=channels)
    ends = [(_pointer(fine, unit), [s * size // unit for s in fine_strides]),
            (_pointer(coarse, unit), [s * size // unit for s in coarse_strides])]
    (source, source_strides), (target, target_strides) = reversed(ends) if unshuffle else ends
    blocks = triton.cdiv(channels * parts, config["block_units"])
    _triton.launch(shuffle_kernel, batch * rows * columns * blocks, fine.device, source, *source_strides, target,
                   *target_strides, rows, columns, factor, channels, blocks, PARTS=parts, DENSE=dense,
                   BLOCK=config["block_units"], num_warps=config["num_warps"], num_stages=config["num_stages"])
