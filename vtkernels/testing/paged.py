"""compact_kv_paged and prune_topk_paged: tokens followed one by one, hostile tables, pages with a watermark."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _library
from .base import Sample, bytes_of, clustered, rand
from .fused import assert_prune_topk_varlen

Slot = tuple[int, int]  # page, offset


class PagedResult(NamedTuple):
    """What must come out of a compaction."""

    lengths: list[int]
    slots: list[list[int]]  # of the kept tokens of each row; none where the row is refused
    freed: list[list[int]]
    status: int
    moves: list[tuple[Slot, Slot]]


def oracle_paged(blocks: int, size: int, table: np.ndarray, lengths: Sequence[int], kept: Sequence[Any],
                 dst: np.ndarray | None = None, allow_shared: bool = False,
                 refused: Sequence[int] | None = None) -> PagedResult:
    """Follows every kept token from its slot to the next one; `refused` are status bits that are known already."""
    rows, width = table.shape
    valid_length = [0 <= n <= width * size for n in lengths]
    clamped = [min(max(int(n), 0), width * size) for n in lengths]
    pages_of = [[int(table[b, i]) for i in range(width) if i * size < clamped[b]] for b in range(rows)]
    holders = np.zeros(blocks, int)
    for b in range(rows):
        for page in pages_of[b] if valid_length[b] else table[b]:
            if 0 <= page < blocks:
                holders[page] += 1
    fresh: list[list[int]] = [[] for _ in range(rows)]
    takers = np.zeros(blocks, int)
    if dst is not None:
        for b in range(rows):
            fresh[b] = [int(dst[b, i]) for i in range(dst.shape[1]) if i * size < len(kept[b])]
            for page in fresh[b]:
                if 0 <= page < blocks:
                    takers[page] += 1

    result = PagedResult([], [], [], 0, [])
    status = 0
    for b in range(rows):
        bits = 0 if refused is None else int(refused[b])
        positions = [int(p) for p in kept[b]]
        if not valid_length[b] or (dst is not None and len(positions) > dst.shape[1] * size):
            bits |= _library.STATUS_BAD_SEQLENS
        if any(not 0 <= p < clamped[b] for p in positions) or any(
                p <= q for q, p in itertools.pairwise(positions)):
            bits |= _library.STATUS_BAD_INDEX
        if not all(0 <= page < blocks for page in pages_of[b] + fresh[b]):
            bits |= _library.STATUS_BAD_PAGE
        stays = 0
        while stays < len(positions) and positions[stays] == stays:
            stays += 1
        for i, page in enumerate(pages_of[b]):
            if not 0 <= page < blocks or allow_shared or holders[page] == 1:
                continue
            # In place, a page of tokens that all stay may belong to others too, if none moves into it.
            untouched = (i + 1) * size <= stays or (stays == len(positions) and i * size < stays)
            if dst is not None or not untouched:
                bits |= _library.STATUS_SHARED_PAGE
        if any(0 <= page < blocks and (holders[page] > 0 or takers[page] > 1) for page in fresh[b]):
            bits |= _library.STATUS_SHARED_PAGE
        status |= bits
        if bits:
            result.lengths.append(int(lengths[b]) if dst is None else 0)
            result.slots.append([])
            result.freed.append([])
            continue
        target = pages_of[b] if dst is None else fresh[b]
        slots = []
        for j, p in enumerate(positions):
            to = (target[j // size], j % size)
            slots.append(to[0] * size + to[1])
            result.moves.append(((pages_of[b][p // size], p % size), to))
        result.lengths.append(len(positions))
        result.slots.append(slots)
        used = {slot // size for slot in slots}
        result.freed.append([page for page in pages_of[b] if dst is not None or page not in used])
    return result._replace(status=status)


def moved_pool(before: np.ndarray, moves: Sequence[tuple[Slot, Slot]], kv_layout: str) -> np.ndarray:
    """Bytes of a pool after the moves, each read from the pool as it was."""
    after = before.copy()
    old, new = (x if kv_layout == "NHD" else x.swapaxes(1, 2) for x in (before, after))
    for source, target in moves:
        new[target] = old[source]
    return after


def padded(rows: Sequence[Sequence[int]], width: int) -> list[list[int]]:
    return [[*row, *[-1] * (width - len(row))] for row in rows]


def compact_result(kv: Sequence[Tensor], block_table: Tensor, seq_lens: Tensor, indices: Tensor, *,
                   counts: Tensor | None = None, dst_block_table: Tensor | None = None, kv_layout: str = "NHD",
                   allow_shared: bool = False) -> PagedResult:
    blocks, size = kv[0].shape[0], kv[0].shape[1 if kv_layout == "NHD" else 2]
    rows = indices.tolist()
    wanted = [len(row) - row.count(-1) for row in rows] if counts is None else counts.tolist()
    bad = [0 if 0 <= n <= indices.shape[1] else _library.STATUS_BAD_INDEX for n in wanted]
    kept = [row[:max(n, 0)] for row, n in zip(rows, wanted, strict=True)]
    dst = None if dst_block_table is None else dst_block_table.numpy()
    return oracle_paged(blocks, size, block_table.numpy(), seq_lens.tolist(), kept, dst, allow_shared, bad)


def assert_pools(before: Sequence[np.ndarray], after: Sequence[Tensor], want: PagedResult, kv_layout: str) -> None:
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(bytes_of(new), moved_pool(old, want.moves, kv_layout))


def assert_compact_kv_paged(outputs: Sequence[Tensor], kv: Sequence[Tensor], block_table: Tensor, seq_lens: Tensor,
                            indices: Tensor, *, before: Sequence[np.ndarray] | None = None, **kwargs: Any) -> None:
    """Lengths, slots and freed blocks; with the bytes of the pools `before` the call, all of `kv` after it."""
    want = compact_result(kv, block_table, seq_lens, indices, **kwargs)
    assert outputs[0].tolist() == want.lengths
    assert outputs[1].tolist() == padded(want.slots, indices.shape[1])
    assert outputs[2].tolist() == padded(want.freed, block_table.shape[1])
    if before is not None:
        assert_pools(before, kv, want, kwargs.get("kv_layout", "NHD"))


def paged_result(cu_out: Tensor, indices: Tensor, hidden: Tensor, cu_seqlens: Tensor, kv: Sequence[Tensor],
                 block_table: Tensor, seq_lens: Tensor, context_lens: Tensor | None, dst_block_table: Tensor | None,
                 kv_layout: str, allow_shared: bool) -> tuple[PagedResult, list[slice]]:
    """The compaction that the kept indices of a prune ask for, and which of each row's slots belong to them."""
    blocks, size = kv[0].shape[0], kv[0].shape[1 if kv_layout == "NHD" else 2]
    bounds = np.maximum.accumulate(np.clip(cu_seqlens.numpy(), 0, hidden.shape[0])).tolist()
    kept, bad, own = [], [], []
    for b, given in enumerate(seq_lens.tolist()):
        n, held = bounds[b + 1] - bounds[b], min(max(given, 0), block_table.shape[1] * size)
        context = given - n if context_lens is None else int(context_lens[b])
        chosen = [int(i) - bounds[b] + context for i in indices[int(cu_out[b]):int(cu_out[b + 1])]]
        fits = context >= 0 and context + n <= held
        bad.append(0 if fits else _library.STATUS_BAD_SEQLENS)
        before = min(max(context, 0), held)
        kept.append([*range(before), *chosen, *range(min(max(context + n, before), held), held)])
        own.append(slice(before, before + len(chosen)))
    dst = None if dst_block_table is None else dst_block_table.numpy()
    return oracle_paged(blocks, size, block_table.numpy(), seq_lens.tolist(), kept, dst, allow_shared, bad), own


def assert_prune_topk_paged(outputs: Sequence[Tensor], hidden: Tensor, prototypes: Tensor, cu_seqlens: Tensor,
                            k: Tensor, total_out: int, kv: Sequence[Tensor], block_table: Tensor, seq_lens: Tensor, *,
                            before: Sequence[np.ndarray] | None = None, context_lens: Tensor | None = None,
                            dst_block_table: Tensor | None = None, kv_layout: str = "NHD", allow_shared: bool = False,
                            **kwargs: Any) -> None:
    """As `prune_topk_varlen` the tokens, as `compact_kv_paged` the pages."""
    rows, indices, scores, cu_out, lengths, slots, freed = outputs
    assert_prune_topk_varlen((rows, [], indices, scores, cu_out), hidden, prototypes, cu_seqlens, k, total_out,
                             **kwargs)
    want, own = paged_result(cu_out, indices, hidden, cu_seqlens, kv, block_table, seq_lens, context_lens,
                             dst_block_table, kv_layout, allow_shared)
    assert lengths.tolist() == want.lengths
    assert freed.tolist() == padded(want.freed, block_table.shape[1])
    expected = [-1] * total_out
    for b, (row, part) in enumerate(zip(want.slots, own, strict=True)):
        if row:
            expected[int(cu_out[b]):int(cu_out[b + 1])] = row[part]
    assert slots.tolist() == expected
    if before is not None:
        assert_pools(before, kv, want, kv_layout)


def pool(*shape: int, dtype: torch.dtype = torch.uint8, seed: int = 0) -> Tensor:
    """Random bytes as any dtype: NaN payloads and signed zeros among them."""
    raw = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8,
                        generator=torch.Generator().manual_seed(seed))
    return (raw & 1 if dtype == torch.bool else raw).view(dtype)[..., 0]


def ints(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32)


def compact_samples() -> Iterator[Sample]:
    table, lengths = ints([4, 9, 1, 0], [7, 2, 11, 3]), ints(14, 9)  # pages of 4 tokens, 12 in the pool
    kept = torch.tensor([[0, 1, 2, 5, 6, 9, 13, -1], [1, 3, 4, 7, 8, -1, -1, -1]])
    fresh = ints([5, 6], [8, 10])

    def nhd(dtype: torch.dtype = torch.float32, heads: int = 2, width: int = 8, seed: int = 0) -> Tensor:
        return pool(12, 4, heads, width, dtype=dtype, seed=seed)

    def hnd(dtype: torch.dtype = torch.float32, heads: int = 2, width: int = 8, seed: int = 0) -> Tensor:
        return pool(12, heads, 4, width, dtype=dtype, seed=seed)

    def one(name: str, *args: Any, **kwargs: Any) -> Sample:
        return Sample(name, ([nhd(torch.int16), nhd(torch.int16, seed=1)], *args), kwargs)

    yield one("pair", table, lengths, kept)
    yield one("counts", table, lengths, kept.masked_fill(kept < 0, 77).int(), counts=ints(5, 0))
    yield one("new-pages", table, lengths, kept, dst_block_table=fresh)
    yield one("new-pages-counts", table, lengths, kept, counts=ints(0, 4), dst_block_table=fresh)
    mixed = (torch.bfloat16, torch.uint8, torch.float8_e4m3fn, torch.float64, torch.bool)
    yield Sample("mixed", ([nhd(t, 1 + i, 3 + 2 * i) for i, t in enumerate(mixed)], table, lengths, kept), {})
    yield Sample("HND-mixed", ([hnd(t, 1 + i, 3 + 2 * i) for i, t in enumerate(mixed)], table, lengths, kept),
                 {"kv_layout": "HND"})
    yield Sample("HND", ([hnd(), hnd(seed=1)], table, lengths, kept), {"kv_layout": "HND"})
    yield Sample("HND-new-pages", ([hnd(torch.uint8, 3, 5)], table, lengths, kept),
                 {"kv_layout": "HND", "dst_block_table": fresh})
    wide = pool(12, 9, 5, 20, dtype=torch.int16)
    yield Sample("strided", ([wide[:, 1:5, ::2, 3:19:2], wide[:, 5:9, 1:4, 1:8]], table, lengths, kept), {})
    yield Sample("slots", ([pool(40, 1, 2, 8)], torch.randperm(40, generator=torch.Generator().manual_seed(2)).int()
                           .view(2, 20), ints(20, 11), kept), {})
    yield one("everything-stays", table, lengths, torch.arange(9).expand(2, 9))
    yield one("nothing-kept", table, lengths, kept[:, :0])
    yield one("only-padding", table, lengths, torch.full((2, 3), -1))
    yield one("table-strided", table.repeat_interleave(2, 1)[:, ::2], lengths.repeat_interleave(3)[::3],
              kept.repeat(1, 2)[:, 8:].T.contiguous().T)
    # Both rows begin with the same two pages, and keep them whole.
    yield one("prefix-shared", ints([4, 9, 1, 0], [4, 9, 11, 3]), ints(14, 12),
              torch.tensor([[*range(8), 10, 13], [*range(9), -1]]))
    yield one("new-pages-shared", ints([4, 9, 1, 0], [4, 9, 11, 3]), ints(14, 9), kept, dst_block_table=fresh,
              allow_shared=True)
    yield one("bad-lengths", ints([4, 9, 1, 0], [7, 2, 11, 3], [5, 6, 8, 10]), ints(17, -3, 16),
              torch.tensor([[1, 2], [0, 1], [0, 15]]))
    yield one("bad-indices", ints([4, 9], [7, 2], [11, 3], [5, 6]), ints(8, 8, 8, 8),
              torch.tensor([[1, 1, -1], [2, 8, -1], [-1, 3, 4], [3, 2**31 - 1, 5]]))
    yield one("bad-counts", table, lengths, kept, counts=ints(9, -1))
    yield one("bad-pages", ints([4, 12, 1, 0], [7, 2, -1, 3], [8, 2**31 - 1, 10, 10]), ints(14, 9, 4),
              torch.tensor([[3], [3], [3]]))
    yield one("shared-pages", ints([4, 9, 1, 0], [7, 9, 11, 3], [8, 8, 10, 5]), ints(14, 9, 8),
              torch.tensor([[3], [5], [2]]))
    yield one("overlapping-new-pages", ints([4, 9], [7, 2], [11, 3], [5, 6]), ints(8, 8, 8, 8),
              torch.tensor([[1, 7], [1, 7], [1, 7], [1, 7]]), dst_block_table=ints([7], [1], [8], [8]))
    yield one("bad-new-pages", ints([4, 9], [7, 2], [11, 3]), ints(8, 8, 8), kept[:1, 1:7].sub(1).clamp(max=7).unique()
              .expand(3, -1), dst_block_table=ints([12, 1], [-1, 0], [5, 6])[:, :2])
    yield one("too-few-new-pages", ints([4, 9], [7, 2]), ints(8, 8),
              torch.tensor([[0, 1, 2, 3, 4], [5, -1, -1, -1, -1]]), dst_block_table=ints([1], [3]))
    yield one("too-few-new-pages-of-all", table, lengths, kept, counts=ints(0, 2), dst_block_table=fresh[:, :0])
    yield Sample("no-bytes", ([nhd(width=0)], table, lengths, kept), {})
    yield one("no-rows", table[:0], lengths[:0], kept[:0])
    yield one("no-pages", table[:, :0], ints(0, 0), torch.full((2, 3), -1))


def paged_samples() -> Iterator[Sample]:
    table, cu = ints([3, 8, 1, 6, 14], [10, 2, 12, 9, 7], [0, 5, 15, 13, 4]), ints(0, 30, 31, 60)  # pages of 8 tokens
    lengths, context = ints(34, 9, 40), ints(4, 6, 11)
    for dtype in (torch.float32, torch.bfloat16):
        tag = str(dtype).removeprefix("torch.")
        hidden, protos = clustered(60, 40, dtype=dtype), clustered(9, 40, dtype=dtype, seed=4)

        def kv(layout: str = "NHD", dtype: torch.dtype = dtype) -> list[Tensor]:
            shape = (20, 8, 2, 4) if layout == "NHD" else (20, 2, 8, 4)
            return [rand(*shape, dtype=dtype, seed=s) for s in (5, 6)]

        args = (hidden, protos, cu, ints(7, 1, 12))
        yield Sample(f"{tag}-last-tokens", (*args, 20, kv(), table, lengths), {})
        yield Sample(f"{tag}-tokens-after", (*args, 24, kv("HND"), table, lengths),
                     {"context_lens": context.sub(2).clamp(min=0), "kv_layout": "HND", "keep_similar": True})
        if dtype != torch.float32:
            continue
        spans = {"span_starts": ints(4, 0, 9), "span_lens": ints(20, 1, 16)}
        yield Sample(f"{tag}-spans", (*args, 44, kv(), table, lengths), {**spans, "context_lens": context})
        fresh = ints([16, 17, 18], [19, 11, 20], [20, 21, 22])
        more = [torch.cat([t, t]) for t in kv()]
        yield Sample(f"{tag}-new-pages", (*args, 20, more, table, lengths), {"dst_block_table": fresh})
        yield Sample(f"{tag}-truncated", (*args, 12, kv(), table, lengths), {})
        yield Sample(f"{tag}-bad-context", (*args, 20, kv(), table, lengths), {"context_lens": ints(5, -1, 2)})
        yield Sample(f"{tag}-hostile-metadata", (hidden, protos, ints(3, 50, 40, 2**31 - 1), ints(99, -7, 12), 50, kv(),
                                                 ints([3, 8, 1, 6, 14, 18], [10, 3, -12, 9, 7, 99],
                                                      [0, 5, 15, 13, 4, 2]), ints(47, 20, 44)), {})
        yield Sample(f"{tag}-tokens-after-none", (hidden, protos, cu, ints(0, 0, 0), 0, kv(), table, lengths),
                     {"context_lens": context - 2})
        # The first tokens of the span stay where they are; what follows it would move into a page of two sequences.
        first, shared = hidden.clone(), table.clone()
        first[11:24], shared[2, 0] = protos[0], table[0, 1]
        yield Sample(f"{tag}-first-tokens-shared-page", (first, protos, cu, ints(7, 1, 12), 44, kv(), shared, lengths),
                     {**spans, "context_lens": context})
        yield Sample(f"{tag}-nothing", (hidden, protos, ints(0), ints(), 0, kv(), table[:0], lengths[:0]), {})


TENANTS = 3  # two in the call, one that is not


class Watermark(NamedTuple):
    """A call on pools whose every byte says which tenant it belongs to (the last of them owns what is free)."""

    args: tuple
    kwargs: dict[str, Any]
    owner: np.ndarray  # [blocks]


def watermark_call(seed: int) -> Watermark:
    """Two tenants with random tables, most of them corrupted in one way or several."""
    pick = random.Random(seed)
    size, width, blocks = pick.choice([1, 2, 4]), pick.randint(1, 5), 24
    order = pick.sample(range(blocks), blocks)
    table = np.array([order[:width], order[width:2 * width]])
    lengths = [pick.randint(0, width * size) for _ in range(2)]
    owner = np.full(blocks, TENANTS)
    for b in range(2):
        owner[table[b, :-(-lengths[b] // size)]] = b
    owner[order[2 * width:2 * width + 3]] = TENANTS - 1
    kept = [sorted(pick.sample(range(n), pick.randint(0, n))) for n in lengths]
    dst = None
    if pick.random() < 0.5:
        free = [p for p in range(blocks) if owner[p] == TENANTS]
        dst = np.array(pick.sample(free, 2 * pick.randint(1, min(width, len(free) // 2)))).reshape(2, -1)
    wild = (-1, -2**31, blocks, blocks + 1, 2**31 - 1)

    def named(b: int) -> list[int]:
        """Pages of tenant b that its table still names."""
        return [int(p) for p in table[b, :-(-max(lengths[b], 0) // size)] if 0 <= p < blocks and owner[p] == b]

    # Pages are taken from another tenant last: one that its own tenant's table no longer names cannot be told apart.
    kinds = ["wild page", "page twice", "length", "index", "order", "page of the other", "new page"]
    for kind in sorted(pick.sample(kinds, pick.choice([0, 1, 1, 1, 2, 3])), key=kinds.index):
        b, at = pick.randrange(2), pick.randrange(width)
        if kind == "wild page":
            table[b, at] = pick.choice(wild)
        elif kind == "page twice" and named(b):
            table[b, at] = pick.choice(named(b))
        elif kind == "length":
            lengths[b] = pick.choice([-1, -2**31, width * size + 1, 2**31 - 1])
        elif kind == "index" and kept[b]:
            kept[b][pick.randrange(len(kept[b]))] = pick.choice([-1, -5, width * size, 2**31 - 1, lengths[b]])
        elif kind == "order" and len(kept[b]) > 1:
            pick.shuffle(kept[b])
        elif kind == "page of the other" and named(1 - b):
            table[b, at] = pick.choice(named(1 - b))
        elif kind == "new page" and dst is not None:
            dst[b, pick.randrange(dst.shape[1])] = pick.choice([*wild, dst[1 - b, 0], *named(0), *named(1)])
    indices = torch.tensor(padded(kept, max(map(len, kept)) + pick.randint(0, 1)), dtype=torch.int64)
    layout = pick.choice(["NHD", "HND"])
    marks = np.arange(blocks * size).reshape(blocks, size) * 7 % 61 + 64 * owner[:, None]
    pools = []
    for heads, bytes_ in ((2, 3), (1, 16)):
        marked = np.broadcast_to(marks[:, :, None, None], (blocks, size, heads, bytes_)).astype(np.uint8)
        raw = marked ^ np.arange(heads * bytes_, dtype=np.uint8).reshape(heads, bytes_) % 4 << 2
        pools.append(torch.from_numpy(np.ascontiguousarray(raw if layout == "NHD" else raw.swapaxes(1, 2))))
    kwargs: dict[str, Any] = {"kv_layout": layout}
    if dst is not None:
        kwargs["dst_block_table"] = torch.from_numpy(dst.astype(np.int32))
    args = (pools, torch.from_numpy(table.astype(np.int32)), torch.tensor(lengths, dtype=torch.int32), indices)
    return Watermark(args, kwargs, owner)


def assert_watermark(call: Watermark, before: Sequence[np.ndarray], outputs: Sequence[Tensor]) -> None:
    """A page holds bytes of its tenant only, a free one those of the row it was given to; then the exact bytes."""
    pools, table, _, indices = call.args
    size = pools[0].shape[1 if call.kwargs["kv_layout"] == "NHD" else 2]
    dst = call.kwargs.get("dst_block_table", table[:, :0])
    needed = [-(-int((row != -1).sum()) // size) for row in indices]  # new pages that a row has tokens for
    given = {page: b for b in range(2) for page in dst[b, :needed[b]].tolist()}
    for old, new in zip(before, pools, strict=True):
        after = bytes_of(new)
        for page, owner in enumerate(call.owner):
            found = set((after[page] >> 6).ravel().tolist())
            if owner == TENANTS and page in given:
                assert found in ({owner}, {given[page]}, {owner, given[page]}), f"page {page} has bytes of {found}"
            elif owner < 2:
                assert found == {owner}, f"page {page} of tenant {owner} has bytes of {found}"
            else:
                np.testing.assert_array_equal(after[page], old[page])
    for b in range(2):
        others = {page for page, owner in enumerate(call.owner) if owner not in (b, TENANTS)}
        assert not others & set(outputs[2][b].tolist()), "a page of another tenant is given away"
    assert_compact_kv_paged(outputs, *call.args, before=before, **call.kwargs)
