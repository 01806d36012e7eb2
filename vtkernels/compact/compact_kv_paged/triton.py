"""Three launches: count how often each page is named, check and plan every row, move the tokens of all pools."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _checks as check
from ... import _triton
from ..._library import STATUS_BAD_INDEX, STATUS_BAD_PAGE, STATUS_BAD_SEQLENS, STATUS_SHARED_PAGE
from ...tuning import lookup
from ..gather_tokens.triton import Move, moves

BAD_INDEX = tl.constexpr(STATUS_BAD_INDEX)
BAD_SEQLENS = tl.constexpr(STATUS_BAD_SEQLENS)
BAD_PAGE = tl.constexpr(STATUS_BAD_PAGE)
SHARED_PAGE = tl.constexpr(STATUS_SHARED_PAGE)

GEOMETRY_WORDS = 11  # for each geometry: first item, items per pool, first pool, unit, width, inner, columns, 4 strides
RESERVED_WORDS = 64  # left to the kernel's other parameters
WORDS = tl.constexpr(GEOMETRY_WORDS)
SPAN_WORDS = tl.constexpr(5)  # of each row: first index and number of indices, what to add to them, prefix, suffix
MAX_CHUNKS = 64      # of a row's tokens, when they go to new pages
PLAN_BLOCK = 1024


@triton.jit
def _row_span(spans, b, kept, index_batch, held, count):
    """Kept positions of row b: 0 .. prefix, then indices[first .. first + listed] + base, then suffix .. held."""
    if spans is not None:
        words = spans + b * SPAN_WORDS
        listed = tl.load(words + 1)
        prefix = tl.minimum(tl.maximum(tl.load(words + 3), 0), held)
        suffix = tl.minimum(tl.maximum(tl.load(words + 4), prefix), held)
        first = tl.load(words)
        base = tl.load(words + 2)
        count = prefix + listed + held - suffix
    else:
        first = b * index_batch
        listed = count
        base = tl.zeros((), tl.int64)
        prefix = tl.zeros((), tl.int64)
        suffix = held
    return first, listed, base, prefix, suffix, count


@triton.jit(do_not_specialize=["table_batch", "table_step", "dst_batch", "dst_step", "lens_step", "index_batch",
                               "index_step", "counts_step", "width", "dst_width", "size", "blocks", "kept"])
def claim_kernel(table, table_batch: tl.int64, table_step: tl.int64, dst_table, dst_batch: tl.int64,
                 dst_step: tl.int64, seq_lens, lens_step: tl.int64, indices, index_batch: tl.int64,
                 index_step: tl.int64, counts, counts_step: tl.int64, spans, claims, rows, width: tl.int64,
                 dst_width: tl.int64, size: tl.int64, blocks: tl.int64, kept: tl.int64, BLOCK: tl.constexpr):
    """How many rows name each page: as one that holds tokens, and (behind those) as a new one."""
    b = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK).to(tl.int64)
    length = tl.load(seq_lens + b * lens_step).to(tl.int64)
    held = tl.minimum(tl.maximum(length, 0), width * size)
    count = tl.zeros((), tl.int64)
    if spans is None:
        if counts is not None:
            count = tl.minimum(tl.maximum(tl.load(counts + b * counts_step).to(tl.int64), 0), kept)
        else:
            for start in range(0, kept, BLOCK):
                j = start + lane
                index = tl.load(indices + b * index_batch + j * index_step, mask=j < kept, other=-1)
                count += tl.sum((index != -1).to(tl.int64), 0)
    _, _, _, _, _, count = _row_span(spans, b, kept, index_batch, held, count)
    tl.store(rows + b * 2, count)
    # A row whose length is bad may hold any page of its table.
    named = tl.where(held == length, (held + size - 1) // size, width)
    for start in range(0, named, BLOCK):
        at = start + lane
        page = tl.load(table + b * table_batch + at * table_step, mask=at < named, other=-1).to(tl.int64)
        tl.atomic_add(claims + page, 1, mask=(page >= 0) & (page < blocks))
    if dst_table is not None:
        wanted = tl.minimum((count + size - 1) // size, dst_width)
        for start in range(0, wanted, BLOCK):
            at = start + lane
            page = tl.load(dst_table + b * dst_batch + at * dst_step, mask=at < wanted, other=-1).to(tl.int64)
            tl.atomic_add(claims + blocks + page, 1, mask=(page >= 0) & (page < blocks))


@triton.jit(do_not_specialize=["table_batch", "table_step", "dst_batch", "dst_step", "lens_step", "index_batch",
                               "index_step", "counts_step", "slot_batch", "freed_batch", "width", "dst_width",
                               "size", "blocks", "kept"])
def plan_kernel(table, table_batch: tl.int64, table_step: tl.int64, dst_table, dst_batch: tl.int64,
                dst_step: tl.int64, seq_lens, lens_step: tl.int64, indices, index_batch: tl.int64,
                index_step: tl.int64, counts, counts_step: tl.int64, spans, claims, rows, out_lens, slots,
                slot_batch: tl.int64, freed, freed_batch: tl.int64, status, width: tl.int64, dst_width: tl.int64,
                size: tl.int64, blocks: tl.int64, kept: tl.int64, ALLOW_SHARED: tl.constexpr, BLOCK: tl.constexpr):
    """Decide about a row, write its outputs, and the first token that moves (the number kept where none does)."""
    b = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK).to(tl.int64)
    length = tl.load(seq_lens + b * lens_step).to(tl.int64)
    held = tl.minimum(tl.maximum(length, 0), width * size)
    count = tl.load(rows + b * 2)
    flags = tl.zeros((), tl.int32)
    if held != length:
        flags |= BAD_SEQLENS
    if counts is not None:  # noqa: SIM102  (one condition of the compiler, one of the run)
        if tl.load(counts + b * counts_step).to(tl.int64) != count:
            flags |= BAD_INDEX
    first, listed, base, prefix, suffix, count = _row_span(spans, b, kept, index_batch, held, count)
    if spans is not None:  # noqa: SIM102
        if (tl.load(spans + b * SPAN_WORDS + 3) != prefix) | (tl.load(spans + b * SPAN_WORDS + 4) != suffix):
            flags |= BAD_SEQLENS

    stay = tl.where(suffix == prefix + listed, count, prefix + listed)  # leading tokens that are where they belong
    for start in range(0, listed, BLOCK):
        j = start + lane
        inside = j < listed
        position = tl.load(indices + first + j * index_step, mask=inside, other=0).to(tl.int64) + base
        before = tl.load(indices + first + (j - 1) * index_step, mask=inside & (j > 0), other=0).to(tl.int64) + base
        before = tl.where(j > 0, before, prefix - 1)
        bad = (position <= before) | (position < 0) | (position >= suffix)
        if tl.sum((inside & bad).to(tl.int32), 0) > 0:
            flags |= BAD_INDEX
        stay = tl.minimum(stay, tl.min(tl.where(inside & (position != prefix + j), prefix + j, count), 0))

    live = (held + size - 1) // size
    own = tl.zeros((), tl.int64)  # from this page on, the row's pages must be its own
    if dst_table is None:
        own = tl.where(stay < count, stay // size, (count + size - 1) // size)
    for start in range(0, live, BLOCK):
        at = start + lane
        page = tl.load(table + b * table_batch + at * table_step, mask=at < live, other=0).to(tl.int64)
        valid = (page >= 0) & (page < blocks)
        if tl.sum(((at < live) & (valid == 0)).to(tl.int32), 0) > 0:
            flags |= BAD_PAGE
        if not ALLOW_SHARED:
            claimed = tl.load(claims + page, mask=valid & (at < live) & (at >= own), other=0)
            if tl.max(claimed, 0) > 1:
                flags |= SHARED_PAGE
    target = table + b * table_batch
    target_step = table_step
    if dst_table is not None:
        target = dst_table + b * dst_batch
        target_step = dst_step
        if count > dst_width * size:
            flags |= BAD_SEQLENS
        wanted = tl.minimum((count + size - 1) // size, dst_width)
        for start in range(0, wanted, BLOCK):
            at = start + lane
            page = tl.load(target + at * dst_step, mask=at < wanted, other=0).to(tl.int64)
            valid = (page >= 0) & (page < blocks) & (at < wanted)
            if tl.sum(((at < wanted) & (valid == 0)).to(tl.int32), 0) > 0:
                flags |= BAD_PAGE
            read = tl.load(claims + page, mask=valid, other=0)
            written = tl.load(claims + blocks + page, mask=valid, other=0)
            if tl.max(((read > 0) | (written > 1)).to(tl.int32), 0) > 0:
                flags |= SHARED_PAGE

    if flags != 0:
        tl.atomic_or(status, flags)
    done = flags == 0
    unused = (count + size - 1) // size  # pages before this one are still in use
    refused = length
    begin = stay
    if dst_table is not None:
        unused = tl.zeros((), tl.int64)
        refused = tl.zeros((), tl.int64)
        begin = tl.zeros((), tl.int64)
    tl.store(rows + b * 2 + 1, tl.where(done, begin, count))
    tl.store(out_lens + b, tl.where(done, count, refused))
    last_free = tl.where(done, live, 0)
    for start in range(0, width, BLOCK):
        at = start + lane
        free = unused + at < last_free
        page = tl.load(table + b * table_batch + (unused + at) * table_step, mask=free, other=-1)
        tl.store(freed + b * freed_batch + at, page, mask=at < width)
    places = kept
    if spans is not None:
        places = listed
        slots += first
    else:
        slots += b * slot_batch
    last_kept = tl.where(done, listed, 0)
    for start in range(0, places, BLOCK):
        j = start + lane
        place = prefix + j
        kept_here = j < last_kept
        page = tl.load(target + place // size * target_step, mask=kept_here, other=0).to(tl.int64)
        tl.store(slots + j, tl.where(kept_here, page * size + place % size, -1), mask=j < places)


@triton.jit
def _walk(pool, indices, table, table_step, target, target_step, begin, count, step, first, listed, base, prefix,
          suffix, index_step, size, width, column, block_stride, token_stride, UNIT: tl.constexpr,
          BLOCK_ROWS: tl.constexpr, BLOCK_BYTES: tl.constexpr, IN_PLACE: tl.constexpr):
    """Tokens begin, begin + 1, .. of a row, in order, as far as this stripe of their bytes goes."""
    # 16 bytes are a pair of int64, which the hints below let the compiler move by one instruction.
    LANES: tl.constexpr = 2 if UNIT == 16 else 1
    ELEMENT: tl.constexpr = tl.int64 if UNIT >= 8 else (tl.int32 if UNIT == 4 else (tl.int16 if UNIT == 2 else tl.int8))
    BLOCK: tl.constexpr = BLOCK_BYTES // UNIT * LANES
    AT_ONCE: tl.constexpr = min(BLOCK, max(32, BLOCK_BYTES // 8))
    pool = tl.multiple_of(pool.to(tl.pointer_type(ELEMENT)), UNIT)
    block_units = block_stride // UNIT * LANES
    token_units = token_stride // UNIT * LANES
    for start in range(begin, count, step):
        place = start + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        inside = place < count
        listing = inside & (place >= prefix) & (place < prefix + listed)
        index = tl.load(indices + first + (place - prefix) * index_step, mask=listing, other=0).to(tl.int64) + base
        position = tl.where(place < prefix, place, tl.where(listing, index, suffix + place - prefix - listed))
        page = tl.load(table + position // size * table_step, mask=inside, other=0).to(tl.int64)
        source = page * block_units + position % size * token_units
        page = tl.load(target + place // size * target_step, mask=inside, other=0).to(tl.int64)
        written = page * block_units + place % size * token_units
        for part in range(0, BLOCK, AT_ONCE):
            lane = column * BLOCK + part + tl.arange(0, AT_ONCE)
            mask = inside[:, None] & (lane < width * LANES)[None, :]
            units = tl.load(pool + (source[:, None] + lane[None, :]), mask=mask)
            if IN_PLACE:
                # A token may go where another of this block came from. It never goes past its own place, so what
                # later blocks read has not been written.
                tl.debug_barrier()
            tl.store(pool + (written[:, None] + lane[None, :]), units, mask=mask)


@triton.jit(do_not_specialize=["table_batch", "table_step", "dst_batch", "dst_step", "lens_step", "index_batch",
                               "index_step", "width", "size", "kept", "row_items", "chunks"])
def move_kernel(table, table_batch: tl.int64, table_step: tl.int64, dst_table, dst_batch: tl.int64,
                dst_step: tl.int64, seq_lens, lens_step: tl.int64, indices, index_batch: tl.int64,
                index_step: tl.int64, spans, rows, width: tl.int64, size: tl.int64, kept: tl.int64,
                row_items: tl.int64, chunks: tl.int64, addresses, geometries, POOLS: tl.constexpr,
                GROUPS: tl.constexpr, UNITS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_BYTES: tl.constexpr):
    """One stripe of the tokens' bytes in one pool, of one row. Words stay packed until the right one is chosen."""
    program = tl.program_id(0).to(tl.int64)
    chunk = program % chunks
    item = program // chunks
    b = item // row_items
    item = item % row_items
    count = tl.load(rows + b * 2)
    begin = tl.load(rows + b * 2 + 1)
    if begin < count:
        word = geometries[0]
        chosen = 0
        for g in tl.static_range(1, GROUPS):
            if item >= (geometries[g * WORDS] << 2) >> 3:
                word = geometries[g * WORDS]
                chosen = g
        per_pool, pool, unit, row_width = geometries[1], geometries[2], geometries[3], geometries[4]
        inner, columns, block_stride = geometries[5], geometries[6], geometries[7]
        outer_stride, inner_stride, token_stride = geometries[8], geometries[9], geometries[10]
        for g in tl.static_range(1, GROUPS):
            if chosen == g:
                per_pool, pool = geometries[g * WORDS + 1], geometries[g * WORDS + 2]
                unit, row_width = geometries[g * WORDS + 3], geometries[g * WORDS + 4]
                inner, columns = geometries[g * WORDS + 5], geometries[g * WORDS + 6]
                block_stride, outer_stride = geometries[g * WORDS + 7], geometries[g * WORDS + 8]
                inner_stride, token_stride = geometries[g * WORDS + 9], geometries[g * WORDS + 10]
        item -= (word << 2) >> 3
        per_pool = (per_pool << 2) >> 3
        pool = ((pool << 2) >> 3) + item // per_pool
        item = item % per_pool
        address = addresses[0]
        for t in tl.static_range(1, POOLS):
            if pool == t:
                address = addresses[t]
        columns = (columns << 2) >> 3
        column = item % columns
        item = item // columns
        inner = (inner << 2) >> 3
        address = (address << 2) >> 3
        address += (item // inner) * ((outer_stride << 2) >> 3) + (item % inner) * ((inner_stride << 2) >> 3)

        held = tl.minimum(tl.maximum(tl.load(seq_lens + b * lens_step).to(tl.int64), 0), width * size)
        first, listed, base, prefix, suffix, count = _row_span(spans, b, kept, index_batch, held, count)
        table += b * table_batch
        target = table
        target_step = table_step
        if dst_table is not None:
            target = dst_table + b * dst_batch
            target_step = dst_step
        unit = (unit << 2) >> 3
        for u in tl.static_range(len(UNITS)):
            if unit == UNITS[u]:
                _walk(address, indices, table, table_step, target, target_step, begin + chunk * BLOCK_ROWS, count,
                      chunks * BLOCK_ROWS, first, listed, base, prefix, suffix, index_step, size,
                      (row_width << 2) >> 3, column, (block_stride << 2) >> 3, (token_stride << 2) >> 3, UNITS[u],
                      BLOCK_ROWS, BLOCK_BYTES, dst_table is None)


class Table(NamedTuple):
    """The kernel arguments that describe the pools of one launch."""

    addresses: tuple[int, ...]
    geometries: tuple[int, ...]
    row_items: int  # work items for each row
    options: dict[str, object]  # constexprs


def tables(all_moves: Sequence[Move], config: dict) -> list[Table]:
    """Pack the pools into as few launches as the kernel parameters allow."""
    found = []
    pending = [list(group) for _, group in groupby(sorted(all_moves), key=lambda move: move.geometry)]
    while pending:
        room, groups = _triton.PARAMETER_WORDS - RESERVED_WORDS, []
        while pending and room > GEOMETRY_WORDS:
            groups.append(pending[0][:room - GEOMETRY_WORDS])
            room -= GEOMETRY_WORDS + len(groups[-1])
            pending[0] = pending[0][len(groups[-1]):]
            if not pending[0]:
                pending.pop(0)
        found.append(_table(groups, config))
    return found


def _table(groups: Sequence[Sequence[Move]], config: dict) -> Table:
    widest = max(group[0].geometry.width * group[0].geometry.unit for group in groups)
    block_bytes = min(config["block_bytes"], max(16, triton.next_power_of_2(widest)))
    words: list[int] = []
    item = pool = 0
    for group in groups:
        g = group[0].geometry
        columns = triton.cdiv(g.width * g.unit, block_bytes)
        per_pool = g.outer * g.inner * columns
        words += (item, per_pool, pool, g.unit, g.width, g.inner, columns, *g.source)
        item += per_pool * len(group)
        pool += len(group)
    units = tuple(sorted({group[0].geometry.unit for group in groups}, reverse=True))
    return Table(_triton.pack([move.source for group in groups for move in group]), _triton.pack(words), item,
                 {"POOLS": pool, "GROUPS": len(groups), "UNITS": units, "BLOCK_ROWS": config["block_rows"],
                  "BLOCK_BYTES": block_bytes})


def compact(op: str, kv: Sequence[Tensor], block_table: Tensor, seq_lens: Tensor, indices: Tensor,
            counts: Tensor | None, spans: Tensor | None, dst_block_table: Tensor | None, kv_layout: str,
            allow_shared: bool, out_seq_lens: Tensor, out_slot_mapping: Tensor, out_freed_blocks: Tensor,
            status: Tensor | None) -> None:
    """`indices` and `out_slot_mapping` are [B, k], or, with `spans` [B, 5] int64 (see `_row_span`), [T] of all rows."""
    device = kv[0].device
    token_dim = 1 if kv_layout == "NHD" else 2
    all_moves = [move for t in kv for move in moves(t, t, 0, token_dim)]
    places = {(move.source, move.geometry) for move in all_moves}
    if len(places) < len(all_moves):
        check.fail(ValueError, op, "kv", "a list with the same memory twice", "each pool once")
    batch, width = block_table.shape
    if batch == 0:
        return
    blocks, size = kv[0].shape[0], kv[0].shape[token_dim]
    dst = (None, 0, 0) if dst_block_table is None else (dst_block_table, *dst_block_table.stride())
    dst_width = 0 if dst_block_table is None else dst_block_table.shape[1]
    kept = indices.shape[-1]
    index_strides = indices.stride() if spans is None else (0, indices.stride(0))
    # The last word stands in for a status word that nobody wants.
    claims = torch.zeros((1 if dst_block_table is None else 2) * blocks + 1, dtype=torch.int32, device=device)
    rows = torch.empty(2 * batch, dtype=torch.int64, device=device)
    metadata = (block_table, *block_table.stride(), *dst, seq_lens, seq_lens.stride(0), indices, *index_strides)
    counted = (counts, 0 if counts is None else counts.stride(0), spans)
    shape = (width, dst_width, size, blocks, kept)
    _triton.launch(claim_kernel, batch, device, *metadata, *counted, claims, rows, *shape, BLOCK=PLAN_BLOCK,
                   num_warps=4)
    _triton.launch(plan_kernel, batch, device, *metadata, *counted, claims, rows, out_seq_lens, out_slot_mapping,
                   out_slot_mapping.stride(0) if spans is None else 0, out_freed_blocks, out_freed_blocks.stride(0),
                   claims[-1:] if status is None else status, *shape, ALLOW_SHARED=allow_shared, BLOCK=PLAN_BLOCK,
                   num_warps=4)
    config = lookup.config("compact_kv_paged", _triton.device_name(device), kv[0].dtype, k=kept, tensors=len(kv))
    most = min(width * size, kept if spans is None else width * size)
    chunks = 1 if dst_block_table is None else max(1, min(MAX_CHUNKS, triton.cdiv(most, config["block_rows"])))
    for table in tables(all_moves, config):
        programs = batch * table.row_items * chunks
        if programs > _triton.MAX_PROGRAMS:
            raise ValueError(f"{op}: {batch} rows of {len(kv)} pools need more than 2^31 - 1 programs")
        _triton.launch(move_kernel, programs, device, *metadata, spans, rows, width, size, kept, table.row_items,
                       chunks, table.addresses, table.geometries, **table.options, num_warps=config["num_warps"],
                       num_stages=1)


def compact_kv_paged_out(kv: Sequence[Tensor], block_table: Tensor, seq_lens: Tensor, indices: Tensor, *,
                         counts: Tensor | None = None, dst_block_table: Tensor | None = None,
                         kv_layout: str = "NHD", allow_shared: bool = False, out_seq_lens: Tensor,
                         out_slot_mapping: Tensor, out_freed_blocks: Tensor, status: Tensor | None = None) -> None:
    compact("compact_kv_paged", kv, block_table, seq_lens, indices, counts, None, dst_block_table, kv_layout,
            allow_shared, out_seq_lens, out_slot_mapping, out_freed_blocks, status)
