"""Score, select and gather in one launch, or in two.

Work items of the one-launch kernel come from a ticket counter: first all score tiles, row by row, then all blocks of
rows to gather. Whoever finishes the last score tile of a row selects for that row and publishes its indices; a gather
item waits for them. An item waits only for items drawn before it, and score tiles never wait, so nothing can deadlock,
however few of the programs run at a time. Results do not depend on who did what.

The workspace is zero between calls. Its words: a header, then eight for each row.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ..._checks import kv_token_dim
from ..._library import STATUS_BAD_SPAN, workspace_size
from ...compact.gather_tokens.triton import Move, gather_kernel, move_item, moves, tables
from ...score.prototype_scores.triton import score_options, score_tile
from ...select.select_topk.triton import select_row
from ...tuning import lookup

BAD_SPAN = tl.constexpr(STATUS_BAD_SPAN)
TICKET = tl.constexpr(0)     # next work item
EXITS = tl.constexpr(1)      # programs that are done
SELECTED = tl.constexpr(2)   # varlen: sequences whose indices are published
TILES = tl.constexpr(3)      # varlen: score tiles of all sequences
ROWS = tl.constexpr(64)
ROW_WORDS = tl.constexpr(8)
FINISHED = tl.constexpr(0)   # score tiles finished
PUBLISHED = tl.constexpr(1)  # dense: 1 when the indices of the row are published
# varlen: what the preparing kernel found out about a sequence
END, BEGIN, SPAN, LENGTH, COUNT, OUT, TILE = (tl.constexpr(i) for i in range(1, 8))
PARAMETERS_BEFORE_TABLE = 64


@triton.jit
def write_range(indices, first, last, limit):
    """indices[i] = first + i up to `last`, for i < limit."""
    BLOCK: tl.constexpr = 1024
    for start in range(0, tl.minimum(last - first, limit), BLOCK):
        i = start + tl.arange(0, BLOCK).to(tl.int64)
        tl.store(indices + i, first + i, mask=(i < last - first) & (i < limit))


@triton.jit
def score_item(item, hidden, hidden_batch, hidden_stride, dim_stride, d, prototypes, prototype_stride,
               prototype_dim_stride, prototype_count, prototype_rnorm, rnorm_stride, scores, scores_batch,
               indices, indices_batch, tokens, kept, span_start, span_starts, span_starts_stride,
               span_len, k, tiles, batch, workspace, status, VARLEN: tl.constexpr, LARGEST: tl.constexpr,
               UPCAST: tl.constexpr, FAST: tl.constexpr, EVEN_D: tl.constexpr, BLOCK_N: tl.constexpr,
               BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, SELECT_BLOCK: tl.constexpr, SINGLE: tl.constexpr):
    """One tile of scores, and the selection of its row when it is the last one of the row to finish."""
    if VARLEN:
        row = tl.zeros((), tl.int64)
        above = row + batch
        while above - row > 1:  # the last sequence whose tiles begin at or before this one
            middle = (row + above) // 2
            if tl.load(workspace + ROWS + middle * ROW_WORDS + TILE) <= item:
                row = middle
            else:
                above = middle
        words = workspace + ROWS + row * ROW_WORDS
        end = tl.load(words + END).to(tl.int64)
        begin = tl.load(words + BEGIN).to(tl.int64)
        span = tl.load(words + SPAN).to(tl.int64)
        length = tl.load(words + LENGTH).to(tl.int64)
        count = tl.load(words + COUNT).to(tl.int64)
        out = tl.load(words + OUT).to(tl.int64)
        tile = item - tl.load(words + TILE)
        row_tiles = tl.maximum((length + (BLOCK_N - 1)) // BLOCK_N, 1)
        scores += span
        indices += out
        limit = kept - out
        published = workspace + SELECTED
    else:
        row = item // tiles
        tile = item % tiles
        row_tiles = tiles
        words = workspace + ROWS + row * ROW_WORDS
        begin = tl.zeros((), tl.int64)
        end = begin + tokens
        span = begin + span_start
        length = begin + span_len
        count = begin + k
        if span_starts is not None:
            given = tl.load(span_starts + row * span_starts_stride).to(tl.int64)
            span = tl.minimum(tl.maximum(given, 0), tokens - length)
            if status is not None:  # noqa: SIM102 (decided at compile time)
                if (tile == 0) & (span != given):
                    tl.atomic_or(status, BAD_SPAN)
        hidden += row * hidden_batch
        scores += row * scores_batch
        indices += row * indices_batch
        limit = begin + kept
        published = words + PUBLISHED

    first = tile * BLOCK_N
    if first < length:
        score, _ = score_tile(hidden, hidden_stride, dim_stride, span + first, span + length, d, prototypes,
                              prototype_stride, prototype_dim_stride, prototype_count, prototype_rnorm, rnorm_stride,
                              True, UPCAST, FAST, EVEN_D, BLOCK_N, BLOCK_P, BLOCK_D)
        place = first + tl.arange(0, BLOCK_N)
        tl.store(scores + place, score, mask=place < length)
    tl.debug_barrier()  # the atomic is one thread's: it must come after the stores of all
    if tl.atomic_add(words + FINISHED, 1, sem="acq_rel", scope="gpu") == row_tiles - 1:
        tl.store(words + FINISHED, 0)
        before = span - begin
        write_range(indices, begin, span, limit)
        select_row(scores, 1, length, count, indices + before, span, limit - before, LARGEST, SELECT_BLOCK, SINGLE)
        after = before + count
        write_range(indices + after, span + length, end, limit - after)
        tl.debug_barrier()
        tl.atomic_add(published, 1, sem="release", scope="gpu")


@triton.jit
def leave(workspace, batch, VARLEN: tl.constexpr):
    """The last program out leaves the workspace zero."""
    tl.debug_barrier()
    if tl.atomic_add(workspace + EXITS, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1:
        BLOCK: tl.constexpr = 128
        for start in range(0, batch, BLOCK):
            row = start + tl.arange(0, BLOCK).to(tl.int64)
            words = workspace + ROWS + row * ROW_WORDS
            tl.store(words + PUBLISHED, 0, mask=row < batch)
            if VARLEN:
                for word in tl.static_range(2, ROW_WORDS):
                    tl.store(words + word, 0, mask=row < batch)
        tl.store(workspace + tl.arange(0, 4), 0)


SCORE_ARGS = ["hidden_batch", "hidden_stride", "dim_stride", "d", "prototype_stride", "prototype_dim_stride",
              "prototype_count", "rnorm_stride", "scores_batch", "indices_batch",
              "tokens", "kept", "span_start", "span_starts_stride", "span_len", "k", "tiles", "batch"]


@triton.jit(do_not_specialize=SCORE_ARGS)
def score_select_kernel(hidden, hidden_batch: tl.int64, hidden_stride: tl.int64, dim_stride: tl.int64, d: tl.int32,
                        prototypes, prototype_stride: tl.int64, prototype_dim_stride: tl.int64,
                        prototype_count: tl.int32, prototype_rnorm, rnorm_stride: tl.int64, scores,
                        scores_batch: tl.int64, indices, indices_batch: tl.int64,
                        tokens: tl.int64, kept: tl.int64, span_start: tl.int64, span_starts,
                        span_starts_stride: tl.int64, span_len: tl.int64, k: tl.int64, tiles: tl.int64,
                        batch: tl.int64, workspace, status, VARLEN: tl.constexpr, LARGEST: tl.constexpr,
                        UPCAST: tl.constexpr, FAST: tl.constexpr, EVEN_D: tl.constexpr, BLOCK_N: tl.constexpr,
                        BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, SELECT_BLOCK: tl.constexpr,
                        SINGLE: tl.constexpr):
    """First of two launches: one program for each score tile."""
    item = tl.program_id(0).to(tl.int64)
    total = tl.load(workspace + TILES).to(tl.int64) if VARLEN else batch * tiles
    if item < total:
        score_item(item, hidden, hidden_batch, hidden_stride, dim_stride, d, prototypes, prototype_stride,
                   prototype_dim_stride, prototype_count, prototype_rnorm, rnorm_stride, scores, scores_batch,
                   indices, indices_batch, tokens, kept, span_start, span_starts,
                   span_starts_stride, span_len, k, tiles, batch, workspace, status, VARLEN, LARGEST, UPCAST, FAST,
                   EVEN_D, BLOCK_N, BLOCK_P, BLOCK_D, SELECT_BLOCK, SINGLE)
    leave(workspace, batch, VARLEN)


@triton.jit(do_not_specialize=[*SCORE_ARGS, "row_items", "gather_rows"])
def one_launch_kernel(hidden, hidden_batch: tl.int64, hidden_stride: tl.int64, dim_stride: tl.int64, d: tl.int32,
                      prototypes, prototype_stride: tl.int64, prototype_dim_stride: tl.int64,
                      prototype_count: tl.int32, prototype_rnorm, rnorm_stride: tl.int64, scores,
                      scores_batch: tl.int64, indices, indices_batch: tl.int64,
                      tokens: tl.int64, kept: tl.int64, span_start: tl.int64, span_starts,
                      span_starts_stride: tl.int64, span_len: tl.int64, k: tl.int64, tiles: tl.int64, batch: tl.int64,
                      workspace, status, row_items: tl.int64, gather_rows: tl.int64, addresses, geometries,
                      VARLEN: tl.constexpr, LARGEST: tl.constexpr, UPCAST: tl.constexpr, FAST: tl.constexpr,
                      EVEN_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
                      SELECT_BLOCK: tl.constexpr, SINGLE: tl.constexpr, TENSORS: tl.constexpr, GROUPS: tl.constexpr,
                      UNITS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_BYTES: tl.constexpr):
    """Everything, by any number of programs."""
    score_items = tl.load(workspace + TILES).to(tl.int64) if VARLEN else batch * tiles
    total = score_items + gather_rows * row_items
    ready = tl.full((), -1, tl.int64)  # the last row seen published
    item = tl.atomic_add(workspace + TICKET, 1, sem="relaxed", scope="gpu").to(tl.int64)
    while item < total:
        if item < score_items:
            score_item(item, hidden, hidden_batch, hidden_stride, dim_stride, d, prototypes, prototype_stride,
                       prototype_dim_stride, prototype_count, prototype_rnorm, rnorm_stride, scores, scores_batch,
                       indices, indices_batch, tokens, kept, span_start, span_starts,
                       span_starts_stride, span_len, k, tiles, batch, workspace, status, VARLEN, LARGEST, UPCAST,
                       FAST, EVEN_D, BLOCK_N, BLOCK_P, BLOCK_D, SELECT_BLOCK, SINGLE)
        else:
            row = (item - score_items) // row_items
            if row != ready:
                if VARLEN:  # output rows are packed: any of them may belong to any sequence
                    while tl.atomic_add(workspace + SELECTED, 0, sem="acquire", scope="gpu") < batch:
                        pass
                else:
                    flag = workspace + ROWS + row * ROW_WORDS + PUBLISHED
                    while tl.atomic_add(flag, 0, sem="acquire", scope="gpu") == 0:
                        pass
                tl.debug_barrier()  # one thread acquired for all
                ready = row
            move_item((item - score_items) % row_items, row, indices + row * indices_batch, 1, tokens, kept,
                       addresses, geometries, TENSORS, GROUPS, UNITS, BLOCK_ROWS, BLOCK_BYTES)
        item = tl.atomic_add(workspace + TICKET, 1, sem="relaxed", scope="gpu").to(tl.int64)
    leave(workspace, batch, VARLEN)


def select_options(length: int, keep_similar: bool, config: dict) -> dict[str, object]:
    return {"LARGEST": keep_similar, "SELECT_BLOCK": config["select_block"], "SINGLE": length <= config["select_block"]}


def prune(score_args: Sequence[Any], options: dict[str, object], gather_args: Sequence[Any], all_moves: Sequence[Move],
          gather_rows: int, score_items: int, workspace: Tensor, config: dict, path: str | None) -> None:
    """Launch. `score_args` are those of `score_select_kernel`, `gather_args` the first of `gather_kernel`."""
    device = workspace.device
    launch_options = {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}
    kept = gather_args[-1]
    remaining = tables(all_moves, kept, config["block_rows"], config["block_bytes"], PARAMETERS_BEFORE_TABLE)
    path = path or config["path"]
    items = score_items + gather_rows * remaining[0].row_items if remaining else score_items
    # Tickets are 32-bit numbers, and without rows to gather the first launch does everything.
    if path == "one_launch" and remaining and items < 2**30:
        table = remaining.pop(0)
        programs = min(items, _triton.multiprocessors(device) * config["programs_per_sm"])
        _triton.launch(one_launch_kernel, programs, device, *score_args, table.row_items, gather_rows, table.addresses,
                       table.geometries, **options, **table.options, **launch_options)
    elif score_items:
        _triton.launch(score_select_kernel, score_items, device, *score_args, **options, **launch_options)
    for table in remaining:
        items = gather_rows * table.row_items
        _triton.launch(gather_kernel, min(items, _triton.MAX_PROGRAMS), device, *gather_args, table.row_items, items,
                       None, table.addresses, table.geometries, **table.options, **launch_options)


def zeroed_workspace(batch: int, like: Tensor) -> Tensor:
    return torch.zeros(workspace_size(batch), dtype=torch.int32, device=like.device)


def prune_topk_out(hidden: Tensor, prototypes: Tensor, k: int, kv: Sequence[Tensor] | None = None, *,
                   keep_similar: bool = False, span_start: int = 0, span_len: int = -1,
                   span_starts: Tensor | None = None, prototype_rnorm: Tensor | None = None, kv_layout: str = "HND",
                   out_hidden: Tensor, out_kv: Sequence[Tensor], out_indices: Tensor, out_scores: Tensor,
                   workspace: Tensor | None = None, status: Tensor | None = None, _path: str | None = None) -> None:
    """`_path` is for tests and benchmarks: `"one_launch"` or `"two_launch"` in place of the table's choice."""
    batch, n, d = hidden.shape
    if batch == 0:
        return
    length = out_scores.shape[1]
    kept = out_hidden.shape[1]
    config = lookup.config("prune_topk", _triton.device_name(hidden.device), hidden.dtype, n=batch * n, d=d,
                           p=prototypes.shape[0], tensors=1 + len(out_kv))
    if workspace is None:
        workspace = zeroed_workspace(batch, hidden)
    tiles = max(1, triton.cdiv(length, config["block_n"]))
    token_dim = kv_token_dim("prune_topk", kv_layout)
    all_moves = moves(hidden, out_hidden, 0, 1)
    for cache, out in zip(kv or (), out_kv, strict=True):
        all_moves += moves(cache, out, 0, token_dim)
    score_args = (hidden, *hidden.stride(), d, prototypes, *prototypes.stride(), prototypes.shape[0], prototype_rnorm,
                  0 if prototype_rnorm is None else prototype_rnorm.stride(0), out_scores, out_scores.stride(0),
                  out_indices, out_indices.stride(0), n, kept, span_start, span_starts,
                  0 if span_starts is None else span_starts.stride(0), length, k, tiles, batch, workspace, status)
    options = {"VARLEN": False, **score_options(hidden, prototypes, config),
               **select_options(length, keep_similar, config)}
    prune(score_args, options, (out_indices, out_indices.stride(0), 1, n, kept), all_moves, batch, batch * tiles,
          workspace, config, _path)
