"""Plain torch, any device: one row after the other. Reads the metadata on the host."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..._library import STATUS_BAD_INDEX, STATUS_BAD_PAGE, STATUS_BAD_SEQLENS, STATUS_SHARED_PAGE

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def move_tokens(kv: Sequence[Tensor], source: list[int], target: list[int], kv_layout: str) -> None:
    """Copy the tokens at slots `source` (page * block_size + offset) to slots `target`, byte for byte."""
    for t in kv:
        pages = t.view(WORDS.get(t.element_size(), t.dtype))
        pages = pages if kv_layout == "NHD" else pages.transpose(1, 2)
        size = pages.shape[1]
        from_, to = (torch.tensor(slots, dtype=torch.int64, device=t.device) for slots in (source, target))
        pages[to // size, to % size] = pages[from_ // size, from_ % size]


def compact_rows(kv: Sequence[Tensor], block_table: Tensor, seq_lens: Tensor, kept: Sequence[list[int]],
                 flags: Sequence[int], dst_block_table: Tensor | None, kv_layout: str, allow_shared: bool,
                 status: Tensor | None) -> tuple[Tensor, list[list[int]], Tensor]:
    """Keep the positions `kept` of each row; a row with `flags` is refused already.

    Returns the new lengths, the slot of each kept token (none in a refused row), and the freed blocks.
    """
    blocks, size = kv[0].shape[0], kv[0].shape[1 if kv_layout == "NHD" else 2]
    tables, width = block_table.tolist(), block_table.shape[1]
    dst_tables = tables if dst_block_table is None else dst_block_table.tolist()
    in_place = dst_block_table is None
    lengths = seq_lens.tolist()
    held = [min(max(n, 0), width * size) for n in lengths]
    live = [table[:-(-n // size)] for table, n in zip(tables, held, strict=True)]
    wanted = [table[:-(-len(k) // size)] for table, k in zip(dst_tables, kept, strict=True)]
    # A row whose length is bad may hold any page of its table.
    named = [pages if n == given else table for pages, n, given, table in zip(live, held, lengths, tables, strict=True)]
    readers, writers = (Counter(page for pages in rows for page in pages if 0 <= page < blocks)
                        for rows in (named, wanted))

    new_lengths: list[int] = []
    all_slots: list[list[int]] = []
    freed = torch.full(block_table.shape, -1, dtype=torch.int32)
    found = 0
    for b, flag in enumerate(flags):
        positions, pages, target = kept[b], live[b], wanted[b]
        if held[b] != lengths[b] or (not in_place and len(positions) > len(dst_tables[b]) * size):
            flag |= STATUS_BAD_SEQLENS
        if any(not 0 <= p < held[b] for p in positions) or sorted(set(positions)) != positions:
            flag |= STATUS_BAD_INDEX
        if any(not 0 <= page < blocks for page in (pages if in_place else pages + target)):
            flag |= STATUS_BAD_PAGE
        stay = next((j for j, p in enumerate(positions) if p != j), len(positions))  # leading tokens that do not move
        if in_place:
            first = stay // size if stay < len(positions) else -(-stay // size)
            shared = any(readers[page] > 1 for page in pages[first:])
        else:
            shared = any(readers[page] > 1 and not allow_shared for page in pages)
            shared |= any(readers[page] or writers[page] > 1 for page in target)
        flag |= STATUS_SHARED_PAGE * shared
        found |= flag
        if flag:
            new_lengths.append(lengths[b] if in_place else 0)
            all_slots.append([])
            continue
        slots = [target[j // size] * size + j % size for j in range(len(positions))]
        start = stay if in_place else 0
        move_tokens(kv, [pages[p // size] * size + p % size for p in positions[start:]], slots[start:], kv_layout)
        unused = pages[len(target):] if in_place else pages
        freed[b, :len(unused)] = torch.tensor(unused, dtype=torch.int32)
        new_lengths.append(len(positions))
        all_slots.append(slots)
    if status is not None:
        status.bitwise_or_(found)
    device = kv[0].device
    return torch.tensor(new_lengths, dtype=torch.int32, device=device), all_slots, freed.to(device)


def compact_kv_paged(kv: Sequence[Tensor], block_table: Tensor, seq_lens: Tensor, indices: Tensor, *,
                     counts: Tensor | None = None, dst_block_table: Tensor | None = None, kv_layout: str = "NHD",
                     allow_shared: bool = False, status: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    rows = indices.tolist()
    given = [sum(p != -1 for p in row) for row in rows] if counts is None else counts.tolist()
    kept = [row[:max(n, 0)] for row, n in zip(rows, given, strict=True)]
    flags = [STATUS_BAD_INDEX * (len(k) != n) for k, n in zip(kept, given, strict=True)]
    lengths, slots, freed = compact_rows(kv, block_table, seq_lens, kept, flags, dst_block_table, kv_layout,
                                         allow_shared, status)
    slot_mapping = torch.full(indices.shape, -1)
    for b, row in enumerate(slots):
        slot_mapping[b, :len(row)] = torch.tensor(row)
    return lengths, slot_mapping.to(indices.device), freed
