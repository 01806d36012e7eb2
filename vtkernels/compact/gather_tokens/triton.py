"""Rows moved as bytes: any dtypes, shapes and strides, many tensors in one launch."""

from collections.abc import Sequence
from itertools import groupby, product
from math import prod
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ..._library import STATUS_BAD_INDEX
from ...tuning import lookup

BAD_INDEX = tl.constexpr(STATUS_BAD_INDEX)
ADDRESS_WORDS = 2     # kernel parameters for each tensor: source, target; one more where its indices are its own
# For each geometry: first item, items per tensor, first tensor, the fields of `Geometry` (`heads` where they count).
GEOMETRY_WORDS = 15
HEAD_WORDS = 2
RESERVED_WORDS = 64   # left to the kernel's other parameters
WORDS = tl.constexpr(GEOMETRY_WORDS)
SEPARATE_WORDS = tl.constexpr(GEOMETRY_WORDS + HEAD_WORDS)


class Geometry(NamedTuple):
    """How a tensor is walked: [batch, outer, inner, tokens] rows of `width` units, strides in bytes."""

    unit: int  # bytes moved as one integer: 16, 8, 4, 2 or 1
    width: int
    outer: int
    inner: int
    source: tuple[int, int, int, int]  # strides of batch, outer, inner, tokens
    target: tuple[int, int, int, int]
    heads: tuple[int, int] = (0, 0)  # strides of outer and inner in the indices


class Move(NamedTuple):
    """One tensor, or a slice of one, to be gathered."""

    geometry: Geometry
    source: int  # addresses
    target: int
    indices: int = 0  # its first index, from that of the row


def moves(source: Tensor, target: Tensor, batch_dim: int | None, token_dim: int, head_dim: int | None = None,
          head_stride: int = 0, first_index: int = 0) -> list[Move]:
    """Merge what is contiguous in both tensors. More than two dimensions of rows that do not merge become slices.

    Heads that are `head_stride` apart in the indices do not merge.
    """
    step = source.element_size()

    def strides(dim: int | None) -> tuple[int, ...]:
        # A dimension of one element has no stride to speak of; zero keeps it from spoiling the alignment.
        if dim is None:
            return 0, 0
        return tuple(t.stride(dim) * step * (t.shape[dim] > 1) for t in (source, target))

    runs = [[step, 1, 1, 0]]  # [size, source stride, target stride] in bytes, stride in the indices; innermost first
    for dim in reversed(range(source.dim())):
        if dim in (batch_dim, token_dim) or source.shape[dim] == 1:
            continue
        size, run = source.shape[dim], runs[-1]
        apart = head_stride if dim == head_dim else 0
        if not apart and not run[3] and strides(dim) == (run[0] * run[1], run[0] * run[2]):
            run[0] *= size
        else:
            runs.append([size, *strides(dim), apart])
    if prod(run[0] for run in runs) == 0:
        return []
    width, rows = runs[0][0], [*runs[1:], [1, 0, 0, 0], [1, 0, 0, 0]]
    batch, token = strides(batch_dim), strides(token_dim)
    inner, outer, sliced = rows[0], rows[1], rows[2:]
    result = []
    for place in product(*(range(run[0]) for run in sliced)):
        first, second = (t.data_ptr() + sum(i * run[axis] for i, run in zip(place, sliced, strict=True))
                         for axis, t in ((1, source), (2, target)))
        unit = next(u for u in (16, 8, 4, 2, 1)
                    if not any(v % u for v in (width, first, second, *batch, *token, *inner[1:3], *outer[1:3])))
        geometry = Geometry(unit, width // unit, outer[0], inner[0], (batch[0], outer[1], inner[1], token[0]),
                            (batch[1], outer[2], inner[2], token[1]), (outer[3], inner[3]))
        result.append(Move(geometry, first, second, first_index))
    return result


class Table(NamedTuple):
    """The kernel arguments that describe the moves of one launch."""

    addresses: tuple[int, ...]
    geometries: tuple[int, ...]
    row_items: int  # work items for each batch row
    options: dict[str, object]  # constexprs


def tables(all_moves: Sequence[Move], kept: int, block_rows: int, block_bytes: int,
           reserved: int = RESERVED_WORDS, separate: bool = False) -> list[Table]:
    """Pack moves into as few launches as the kernel parameters allow. A work item is `block_rows` tokens of one row
    of heads, `block_bytes` wide. `separate`: tensors or heads have indices of their own."""
    if kept == 0:
        return []
    found = []
    per_group, per_move = GEOMETRY_WORDS + HEAD_WORDS * separate, ADDRESS_WORDS + separate
    pending = [list(group) for _, group in groupby(sorted(all_moves), key=lambda move: move.geometry)]
    while pending:
        room, groups = _triton.PARAMETER_WORDS - reserved, []
        while pending and room >= per_group + per_move:
            take = (room - per_group) // per_move
            groups.append(pending[0][:take])
            room -= per_group + per_move * len(groups[-1])
            pending[0] = pending[0][take:]
            if not pending[0]:
                pending.pop(0)
        found.append(_table(groups, kept, block_rows, block_bytes, separate))
    return found


def _table(groups: Sequence[Sequence[Move]], kept: int, block_rows: int, block_bytes: int, separate: bool) -> Table:
    widest = max(group[0].geometry.width * group[0].geometry.unit for group in groups)
    block_bytes = min(block_bytes, max(16, triton.next_power_of_2(widest)))
    words: list[int] = []
    item = tensor = 0
    for group in groups:
        g = group[0].geometry
        columns = triton.cdiv(g.width * g.unit, block_bytes)
        per_tensor = g.outer * g.inner * triton.cdiv(kept, block_rows) * columns
        words += (item, per_tensor, tensor, g.unit, g.width, g.inner, columns, *g.source, *g.target,
                  *g.heads[:HEAD_WORDS * separate])
        item += per_tensor * len(group)
        tensor += len(group)
    addresses = [word for group in groups for move in group
                 for word in (move.source, move.target, *[move.indices] * separate)]
    units = tuple(sorted({group[0].geometry.unit for group in groups}, reverse=True))
    return Table(_triton.pack(addresses), _triton.pack(words), item,
                 {"TENSORS": tensor, "GROUPS": len(groups), "UNITS": units, "BLOCK_ROWS": block_rows,
                  "BLOCK_BYTES": block_bytes})


@triton.jit
def _copy_units(source, target, index, found, row, in_range, width, source_token, target_token, column,
                UNIT: tl.constexpr, BLOCK_BYTES: tl.constexpr, IN_PLACE: tl.constexpr):
    # 16 bytes are a pair of int64, which the hints below let the compiler move by one instruction.
    LANES: tl.constexpr = 2 if UNIT == 16 else 1
    ELEMENT: tl.constexpr = tl.int64 if UNIT >= 8 else (tl.int32 if UNIT == 4 else (tl.int16 if UNIT == 2 else tl.int8))
    BLOCK: tl.constexpr = BLOCK_BYTES // UNIT * LANES
    # As many at once as 16-byte units would be: each small unit has an address of its own, in registers.
    AT_ONCE: tl.constexpr = min(BLOCK, max(32, BLOCK_BYTES // 8))
    source = tl.multiple_of(source.to(tl.pointer_type(ELEMENT)), UNIT)
    target = tl.multiple_of(target.to(tl.pointer_type(ELEMENT)), UNIT)
    source_row = index * (source_token // UNIT * LANES)
    target_row = row * (target_token // UNIT * LANES)
    for part in range(0, BLOCK, AT_ONCE):
        lane = column * BLOCK + part + tl.arange(0, AT_ONCE)
        inside = in_range[:, None] & (lane < width * LANES)[None, :]
        units = tl.load(source + (source_row[:, None] + lane[None, :]), mask=found[:, None] & inside, other=0)
        if IN_PLACE:
            tl.debug_barrier()  # other threads may be about to read what this one overwrites
            inside = inside & (index != row)[:, None]
        tl.store(target + (target_row[:, None] + lane[None, :]), units, mask=inside)


@triton.jit
def _move_rows(row, indices, index_stride, tokens, kept, source, target, unit, width, source_token, target_token,
               column, UNITS: tl.constexpr, BLOCK_BYTES: tl.constexpr, IN_PLACE: tl.constexpr):
    in_range = row < kept
    index = tl.load(indices + row * index_stride, mask=in_range, other=0).to(tl.int64)
    found = (index >= 0) & (index < tokens)
    if IN_PLACE:
        found = found & (index >= row)
    for u in tl.static_range(len(UNITS)):
        if unit == UNITS[u]:
            _copy_units(source, target, index, found, row, in_range, width, source_token, target_token, column,
                        UNITS[u], BLOCK_BYTES, IN_PLACE)
    return tl.sum((in_range & (found == 0)).to(tl.int32), 0)


@triton.jit
def move_item(item, batch, indices, index_stride, tokens, kept, addresses, geometries, TENSORS: tl.constexpr,
              GROUPS: tl.constexpr, UNITS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_BYTES: tl.constexpr,
              SEPARATE: tl.constexpr = False, IN_PLACE: tl.constexpr = False):
    """Work item `item` (int64) of batch row `batch` (int64): a block of rows, zeros where an index is out of range.
    In place it is all rows in order, so that a row is read before anything is stored over it.

    Returns how many of its indices are out of range. Words stay packed until the right one is chosen, without helpers
    that unpack: in the interpreter each call of one costs as much as the rest.
    """
    STEP: tl.constexpr = SEPARATE_WORDS if SEPARATE else WORDS
    PER_MOVE: tl.constexpr = 3 if SEPARATE else 2
    first = geometries[0]
    chosen = 0
    for g in tl.static_range(1, GROUPS):
        if item >= (geometries[g * STEP] << 2) >> 3:
            first = geometries[g * STEP]
            chosen = g
    per_tensor, tensor, unit = geometries[1], geometries[2], geometries[3]
    width, inner, columns = geometries[4], geometries[5], geometries[6]
    source_batch, source_outer = geometries[7], geometries[8]
    source_inner, source_token = geometries[9], geometries[10]
    target_batch, target_outer = geometries[11], geometries[12]
    target_inner, target_token = geometries[13], geometries[14]
    if SEPARATE:
        index_outer, index_inner = geometries[15], geometries[16]
    for g in tl.static_range(1, GROUPS):
        if chosen == g:
            per_tensor, tensor, unit = geometries[g * STEP + 1], geometries[g * STEP + 2], geometries[g * STEP + 3]
            width, inner, columns = geometries[g * STEP + 4], geometries[g * STEP + 5], geometries[g * STEP + 6]
            source_batch, source_outer = geometries[g * STEP + 7], geometries[g * STEP + 8]
            source_inner, source_token = geometries[g * STEP + 9], geometries[g * STEP + 10]
            target_batch, target_outer = geometries[g * STEP + 11], geometries[g * STEP + 12]
            target_inner, target_token = geometries[g * STEP + 13], geometries[g * STEP + 14]
            if SEPARATE:
                index_outer, index_inner = geometries[g * STEP + 15], geometries[g * STEP + 16]
    item -= (first << 2) >> 3
    per_tensor = (per_tensor << 2) >> 3
    tensor = ((tensor << 2) >> 3) + item // per_tensor
    item = item % per_tensor
    source = addresses[0]
    target = addresses[1]
    if SEPARATE:
        own_indices = addresses[2]
    for t in tl.static_range(1, TENSORS):
        if tensor == t:
            source = addresses[PER_MOVE * t]
            target = addresses[PER_MOVE * t + 1]
            if SEPARATE:
                own_indices = addresses[PER_MOVE * t + 2]

    columns = (columns << 2) >> 3
    column = item % columns
    item = item // columns
    block = tl.zeros((), tl.int64)
    head = item
    if not IN_PLACE:
        row_blocks = (kept + (BLOCK_ROWS - 1)) // BLOCK_ROWS
        block = item % row_blocks
        head = item // row_blocks
    inner = (inner << 2) >> 3
    outer_head = head // inner
    inner_head = head % inner
    source = (source << 2) >> 3
    source += batch * ((source_batch << 2) >> 3)
    source += outer_head * ((source_outer << 2) >> 3) + inner_head * ((source_inner << 2) >> 3)
    target = (target << 2) >> 3
    target += batch * ((target_batch << 2) >> 3)
    target += outer_head * ((target_outer << 2) >> 3) + inner_head * ((target_inner << 2) >> 3)

    if SEPARATE:
        indices += (own_indices << 2) >> 3
        indices += outer_head * ((index_outer << 2) >> 3) + inner_head * ((index_inner << 2) >> 3)
    width = (width << 2) >> 3
    source_token = (source_token << 2) >> 3
    target_token = (target_token << 2) >> 3
    unit = (unit << 2) >> 3
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    bad = _move_rows(row, indices, index_stride, tokens, kept, source, target, unit, width, source_token, target_token,
                     column, UNITS, BLOCK_BYTES, IN_PLACE)
    if IN_PLACE:
        for start in range(BLOCK_ROWS, kept, BLOCK_ROWS):
            bad += _move_rows(row + start, indices, index_stride, tokens, kept, source, target, unit, width,
                              source_token, target_token, column, UNITS, BLOCK_BYTES, IN_PLACE)
    return bad


@triton.jit(do_not_specialize=["tokens", "kept", "row_items", "items", "index_batch", "index_stride"])
def gather_kernel(indices, index_batch: tl.int64, index_stride: tl.int64, tokens: tl.int64, kept: tl.int64,
                  row_items: tl.int64, items: tl.int64, status, addresses, geometries, TENSORS: tl.constexpr,
                  GROUPS: tl.constexpr, UNITS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_BYTES: tl.constexpr,
                  SEPARATE: tl.constexpr = False, IN_PLACE: tl.constexpr = False):
    for item in range(tl.program_id(0).to(tl.int64), items, tl.num_programs(0)):
        batch = item // row_items
        bad = move_item(item % row_items, batch, indices + batch * index_batch, index_stride, tokens, kept, addresses,
                        geometries, TENSORS, GROUPS, UNITS, BLOCK_ROWS, BLOCK_BYTES, SEPARATE, IN_PLACE)
        if status is not None:  # noqa: SIM102 (decided at compile time)
            if bad > 0:
                tl.atomic_or(status, BAD_INDEX)


@triton.jit(do_not_specialize=["tokens", "kept", "count", "index_batch", "index_stride"])
def check_kernel(indices, index_batch: tl.int64, index_stride: tl.int64, tokens: tl.int64, kept: tl.int64,
                 count: tl.int64, status, IN_PLACE: tl.constexpr, BLOCK: tl.constexpr):
    """The status bit of a gather for tensors that have no bytes to move."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    address = indices + (place // kept) * index_batch + (place % kept) * index_stride
    index = tl.load(address, mask=place < count, other=0)
    bad = (index < 0) | (index >= tokens)
    if IN_PLACE:
        bad = bad | (index < place % kept)
    if tl.sum(((place < count) & bad).to(tl.int32), 0) > 0:
        tl.atomic_or(status, BAD_INDEX)


def gather(all_moves: Sequence[Move], indices: Tensor, tokens: int, status: Tensor | None, config: dict,
           check: bool = False, in_place: bool = False) -> None:
    """Move the rows that `indices` [B, k], [B, H, k] or [L, B, H, k] name. `check`: for the status bit, look at all of
    them apart from the moves."""
    if indices.numel() == 0:
        return
    kept = indices.shape[-1]
    if status is not None and (check or not all_moves):
        rows = indices.reshape(-1, kept)
        _triton.launch(check_kernel, triton.cdiv(rows.numel(), 1024), indices.device, rows, *rows.stride(), tokens,
                       kept, rows.numel(), status, IN_PLACE=in_place, BLOCK=1024, num_warps=4)
    separate = indices.dim() > 2
    batch_dim = indices.dim() - 2 - separate
    address = (indices, indices.stride(batch_dim), indices.stride(-1), tokens, kept)
    # A stripe that is compacted in place belongs to one program.
    for table in tables(all_moves, kept, kept if in_place else config["block_rows"], config["block_bytes"],
                        separate=separate):
        items = indices.shape[batch_dim] * table.row_items
        _triton.launch(gather_kernel, min(items, _triton.MAX_PROGRAMS), indices.device, *address, table.row_items,
                       items, status, table.addresses, table.geometries,
                       **table.options | {"BLOCK_ROWS": config["block_rows"]}, SEPARATE=separate, IN_PLACE=in_place,
                       num_warps=config["num_warps"], num_stages=config["num_stages"])


def gather_tokens_out(tensors: Sequence[Tensor], indices: Tensor, *, token_dims: Sequence[int] | None = None,
                      out: Sequence[Tensor], status: Tensor | None = None) -> None:
    dims = token_dims or [1] * len(tensors)
    config = lookup.config("gather_tokens", _triton.device_name(indices.device), tensors[0].dtype,
                           k=indices.shape[1], tensors=len(tensors))
    gather([move for t, o, dim in zip(tensors, out, dims, strict=True) for move in moves(t, o, dim - 1, dim)],
           indices, tensors[0].shape[dims[0]], status, config)
