"""Calls of the ops on pages, and of the fused ones."""

from itertools import pairwise

import torch

from vtkernels.testing import Sample

from .draws import Draws
from .score import _norms
from .tensors import BYTES, FLOATS, bounds, floats, ints, lay_out, raw, spoil


def prune_topk(d: Draws) -> Sample:
    batch, n, width, dtype = d.size(3, 0), d.size(60, 0), d.size(30), d.pick(FLOATS)
    start = d.pick((0, d.between(0, n)))
    length = d.pick((n - start, d.between(0, n - start)))
    layout = d.pick(("HND", "NHD"))
    options: dict = {"keep_similar": d.chance(50), "span_start": start, "kv_layout": layout,
                     "span_len": -1 if start + length == n and d.chance(50) else length}
    if d.chance(25):
        options |= {"span_start": 0, "span_len": length,
                    "span_starts": ints(d, spoil(d, [d.between(0, n - length) for _ in range(batch)]))}
    kv = []
    for _ in range(d.pick((2, 0, 1, 5))):
        heads = d.size(3, 0)
        shape = (batch, heads, n, d.size(12, 0)) if layout == "HND" else (batch, n, heads, d.size(12, 0))
        kv.append(raw(d, *shape, dtype=d.pick(BYTES)))
    prototypes = floats(d, d.size(30), width, dtype=dtype)
    return Sample("", (floats(d, batch, n, width, dtype=dtype), prototypes, d.between(0, length), kv),
                  {**options, **_norms(d, prototypes)})


def _packed(d: Draws) -> tuple[tuple, dict]:
    """Hidden, prototypes, cu_seqlens, k and total_out; options."""
    total, segments, width, dtype = d.size(60, 0), d.size(5, 0), d.size(30), d.pick(FLOATS)
    cu = bounds(d, total, segments, percent=15)
    lengths = [max(0, min(b, total) - max(0, a)) for a, b in pairwise(cu)]
    options: dict = {"keep_similar": d.chance(50)}
    spans = lengths
    if d.chance(30):
        starts = [d.between(0, n) for n in lengths]
        spans = [d.between(0, n - s) for n, s in zip(lengths, starts, strict=True)]
        options |= {"span_starts": ints(d, spoil(d, starts, 15)), "span_lens": ints(d, spoil(d, spans, 15))}
    k = spoil(d, [d.between(0, n) for n in spans], 15)
    kept = sum(lengths) - sum(spans) + sum(max(0, v) for v in k)
    out = d.pick((min(total, kept), total, d.between(0, total)))
    prototypes = floats(d, d.size(30), width, dtype=dtype)
    options |= _norms(d, prototypes)
    return (floats(d, total, width, dtype=dtype), prototypes, ints(d, cu), ints(d, k), out), options


def prune_topk_varlen(d: Draws) -> Sample:
    args, options = _packed(d)
    layout, total = d.pick(("HND", "NHD")), len(args[0])
    kv = []
    for _ in range(d.pick((2, 0, 1))):
        heads = d.size(3, 0)
        kv.append(raw(d, *((heads, total) if layout == "HND" else (total, heads)), d.size(12, 0), dtype=d.pick(BYTES)))
    return Sample("", (*args, kv), {**options, "kv_layout": layout})


def _pages(d: Draws, lengths: list[int], size: int, fresh_tokens: list[int]) -> tuple[list, dict]:
    """Pools, tables and options for rows of these lengths; most of the time what the tables say is true."""
    rows, width = len(lengths), max([-(-n // size) for n in lengths], default=0) + d.size(2, 0)
    room = [-(-n // size) for n in fresh_tokens]
    blocks = rows * width + sum(room) + d.size(4, 0)
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(d.below(1000))).tolist()
    table = [spoil(d, order[b * width:(b + 1) * width], 12) for b in range(rows)]
    layout = d.pick(("NHD", "HND"))
    options: dict = {"kv_layout": layout}
    if d.chance(40):
        most = max(room, default=0) + d.pick((0, 0, 1, -1))
        left = order[rows * width:]
        new = [[left.pop() if left else d.below(max(1, blocks)) for _ in range(max(0, most))] for _ in range(rows)]
        new = [spoil(d, row, 12) for row in new]
        options |= {"dst_block_table": _table(d, new, rows), "allow_shared": d.chance(30)}
    pools = []
    for _ in range(d.between(1, 3)):
        heads, bytes_ = d.size(3, 0), d.size(10, 0)
        shape = (blocks, size, heads, bytes_) if layout == "NHD" else (blocks, heads, size, bytes_)
        pools.append(raw(d, *shape, dtype=d.pick(BYTES), own=True))
    return [pools, _table(d, table, rows), ints(d, spoil(d, lengths, 12))], options


def _table(d: Draws, rows: list[list[int]], count: int) -> torch.Tensor:
    width = len(rows[0]) if rows else 0
    return lay_out(d, torch.tensor(rows, dtype=torch.int32).reshape(count, width))


def compact_kv_paged(d: Draws) -> Sample:
    rows, size = d.size(4, 0), d.size(8)
    lengths = [d.size(30, 0) for _ in range(rows)]
    kept = [sorted({d.below(n) for _ in range(d.size(n, 0))}) if n else [] for n in lengths]
    if d.chance(20):
        kept = [list(range(min(n, len(k)))) for n, k in zip(lengths, kept, strict=True)]
    pages, options = _pages(d, lengths, size, [len(k) for k in kept])
    width = max(map(len, kept), default=0) + d.size(2, 0)
    padded = [spoil(d, k, 12) + [-1] * (width - len(k)) for k in kept]
    indices = torch.tensor(padded, dtype=d.pick((torch.int64, torch.int32))).reshape(rows, width)
    if d.chance(25):
        options["counts"] = ints(d, spoil(d, [len(k) for k in kept], 12))
    return Sample("", (*pages, lay_out(d, indices)), options)


def prune_topk_paged(d: Draws) -> Sample:
    args, options = _packed(d)
    cu = [min(max(0, v), len(args[0])) for v in args[2].tolist()]
    new = [max(0, b - a) for a, b in pairwise(cu)]
    before = [d.size(8, 0) for _ in new]
    pages, more = _pages(d, [n + c for n, c in zip(new, before, strict=True)], d.size(8),
                         [n + c for n, c in zip(new, before, strict=True)])
    if d.chance(30):
        options["context_lens"] = ints(d, spoil(d, before, 12))
    return Sample("", (*args, *pages), {**options, **more})
