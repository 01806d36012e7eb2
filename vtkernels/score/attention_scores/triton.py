"""A tile of keys against all rows that its head serves: S^T = K Q^T, so that a key's sum over rows stays in registers.

Work is split over keys, and over key heads where tiles of keys alone would leave the GPU idle; what the heads of keys
find is then added in their order. Without `lse` a kernel before finds the maximum and the sum of each row over a fixed
number of keys at a time, and a small one combines them.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ..._library import STATUS_BAD_INDEX
from ...tuning import lookup

LOG2E = tl.constexpr(1.4426950408889634)
NAN_KEY = tl.constexpr(2**31 - 1)  # over the key of +inf, so that a maximum of keys propagates NaN
NO_KEY = tl.constexpr(-(2**31))    # under the key of -inf: nothing
BAD_INDEX = tl.constexpr(STATUS_BAD_INDEX)
LOGITS, GIVEN, COMPUTED = (tl.constexpr(i) for i in range(3))
ROWS_BLOCK = 128  # of the combining kernels


@triton.jit
def max_key(x):
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # + 0.0 turns -0 into +0
    return tl.where(x != x, NAN_KEY, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def key_value(key):
    """The value of a key, 0 for none."""
    value = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    value = tl.where(key == NAN_KEY, float("nan"), value)
    return tl.where(key == NO_KEY, 0.0, value)


@triton.jit
def whole(stride, element: tl.constexpr):
    """A stride of whole 16 bytes, for the compiler to see."""
    WIDE: tl.constexpr = 128 // element
    return stride // WIDE * WIDE


@triton.jit
def load_tile(rows, is_row, dim_stride, block, d, FAST: tl.constexpr, EVEN_D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[R, BLOCK_D] from pointers to R rows."""
    dim = block + tl.arange(0, BLOCK_D)
    mask = is_row[:, None]
    if not EVEN_D:
        mask = mask & (dim < d)[None, :]
    if FAST:
        return tl.load(rows[:, None] + dim[None, :], mask=mask, other=0.0)
    else:
        return tl.load(rows[:, None] + dim.to(tl.int64)[None, :] * dim_stride, mask=mask, other=0.0)


@triton.jit
def multiply(k, q, products, UPCAST: tl.constexpr):
    if UPCAST:
        return tl.dot(k.to(tl.float32), tl.trans(q.to(tl.float32)), products, input_precision="ieee")
    else:
        return tl.dot(k, tl.trans(q), products, input_precision="ieee")


@triton.jit
def multiply_blocks(key_rows, is_key, key_dim, query_rows, is_row, query_dim, d, UPCAST: tl.constexpr,
                    FAST: tl.constexpr, EVEN_D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
                    BLOCK_D: tl.constexpr):
    products = tl.zeros((BLOCK_K, BLOCK_R), tl.float32)
    for block in range(0, d, BLOCK_D):
        k = load_tile(key_rows, is_key, key_dim, block, d, FAST, EVEN_D, BLOCK_D)
        q = load_tile(query_rows, is_row, query_dim, block, d, FAST, EVEN_D, BLOCK_D)
        products = multiply(k, q, products, UPCAST)
    return products


@triton.jit
def key_pointers(key, position, in_sequence, batch_stride, token_stride, table, table_stride, table_length, block_size,
                 blocks):
    """Pointers to the keys at `position`, and which of them exist. Paged: `batch_stride` is that of the blocks."""
    if table is not None:
        column = position // block_size
        listed = in_sequence & (column < table_length)
        entry = tl.load(table + column * table_stride, mask=listed, other=-1).to(tl.int64)
        there = listed & (entry >= 0) & (entry < blocks)
        return key + tl.where(there, entry, 0) * batch_stride + position % block_size * token_stride, there
    else:
        return key + position * token_stride, in_sequence


COMMON = ["query_batch", "query_head", "query_row", "query_dim", "key_batch", "key_head", "key_token", "key_dim",
          "table_batch", "table_stride", "table_length", "block_size", "blocks", "rows", "keys", "offset", "group",
          "key_heads", "d", "factor", "stat_batch", "stat_head", "stat_row"]


@triton.jit(do_not_specialize=[*COMMON, "stat_split", "row_tiles", "splits"])
def row_sums_kernel(query, query_batch: tl.int64, query_head: tl.int64, query_row: tl.int64, query_dim: tl.int64, key,
                    key_batch: tl.int64, key_head: tl.int64, key_token: tl.int64, key_dim: tl.int64, bounds, table,
                    table_batch: tl.int64, table_stride: tl.int64, table_length: tl.int64, block_size: tl.int64,
                    blocks: tl.int64, rows: tl.int64, keys: tl.int64, offset: tl.int64, group: tl.int64,
                    key_heads: tl.int64, d: tl.int32, factor: tl.float32, maxima, sums, stat_batch: tl.int64,
                    stat_head: tl.int64, stat_row: tl.int64, stat_split: tl.int64, row_tiles: tl.int64,
                    splits: tl.int64, CAUSAL: tl.constexpr, UPCAST: tl.constexpr, FAST: tl.constexpr,
                    EVEN_D: tl.constexpr, SINGLE: tl.constexpr, SPLIT_KEYS: tl.constexpr, BLOCK_K: tl.constexpr,
                    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    """The maximum and the sum of exponentials of a tile of rows over one split of the keys."""
    if FAST:
        BITS: tl.constexpr = query.dtype.element_ty.primitive_bitwidth
        query_batch, query_head, query_row = whole(query_batch, BITS), whole(query_head, BITS), whole(query_row, BITS)
        key_batch, key_head, key_token = whole(key_batch, BITS), whole(key_head, BITS), whole(key_token, BITS)
    item = tl.program_id(0).to(tl.int64)
    split = item % splits
    first_row = item // splits % row_tiles * BLOCK_R
    head = item // splits // row_tiles % key_heads
    batch = item // splits // row_tiles // key_heads
    if bounds is not None:
        words = bounds + batch * 4
        first = tl.load(words)
        rows = tl.load(words + 1)
        if table is None:
            key += tl.load(words + 2) * key_token
        keys = tl.load(words + 3)
        offset = keys - rows
        query += first * query_row
        maxima += first * stat_row
        sums += first * stat_row
    else:
        query += batch * query_batch
        key += batch * key_batch
        maxima += batch * stat_batch
        sums += batch * stat_batch
    if table is not None:
        table += batch * table_batch
    key += head * key_head
    if first_row < rows * group:
        row = first_row + tl.arange(0, BLOCK_R).to(tl.int64)
        is_row = row < rows * group
        within = row % rows
        row_head = head * group + row // rows
        query_rows = query + row_head * query_head + within * query_row
        most = tl.full((BLOCK_R,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_R,), tl.float32)
        if SINGLE:
            q = load_tile(query_rows, is_row, query_dim, 0, d, FAST, EVEN_D, BLOCK_D)
        end = tl.minimum((split + 1) * SPLIT_KEYS, keys)
        if CAUSAL:
            end = tl.minimum(end, offset + tl.max(tl.where(is_row, within, 0), 0) + 1)
        for start in range(split * SPLIT_KEYS, end, BLOCK_K):
            position = start + tl.arange(0, BLOCK_K).to(tl.int64)
            key_rows, is_key = key_pointers(key, position, position < keys, key_batch, key_token, table, table_stride,
                                            table_length, block_size, blocks)
            if SINGLE:
                k = load_tile(key_rows, is_key, key_dim, 0, d, FAST, EVEN_D, BLOCK_D)
                products = multiply(k, q, tl.zeros((BLOCK_K, BLOCK_R), tl.float32), UPCAST)
            else:
                products = multiply_blocks(key_rows, is_key, key_dim, query_rows, is_row, query_dim, d, UPCAST, FAST,
                                           EVEN_D, BLOCK_K, BLOCK_R, BLOCK_D)
            seen = is_key[:, None] & is_row[None, :]
            if CAUSAL:
                seen = seen & (position[:, None] <= offset + within[None, :])
            logit = tl.where(seen, products * factor, float("-inf"))
            new = tl.maximum(most, tl.max(logit, 0))
            shift = tl.where(new == float("-inf"), 0.0, new)
            exponentials = tl.where(seen, tl.exp2(logit - shift[None, :]), 0.0)
            total = total * tl.exp2(most - shift) + tl.sum(exponentials, 0)
            most = new
        place = split * stat_split + row_head * stat_head + within * stat_row
        tl.store(maxima + place, most, mask=is_row)
        tl.store(sums + place, total, mask=is_row)


@triton.jit(do_not_specialize=["count", "splits"])
def combine_rows_kernel(maxima, sums, count: tl.int64, splits: tl.int64, BLOCK: tl.constexpr):
    """Maximum and sum of each row over all splits, to the place of the first."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = row < count
    most = tl.load(maxima + row, mask=valid, other=0.0)
    for split in range(1, splits):
        most = tl.maximum(most, tl.load(maxima + split.to(tl.int64) * count + row, mask=valid, other=0.0))
    shift = tl.where(most == float("-inf"), 0.0, most)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(0, splits):
        place = split.to(tl.int64) * count + row
        share = tl.exp2(tl.load(maxima + place, mask=valid, other=0.0) - shift)
        total += tl.load(sums + place, mask=valid, other=0.0) * share
    tl.store(maxima + row, most, mask=valid)
    tl.store(sums + row, total, mask=valid)


@triton.jit(do_not_specialize=[*COMMON, "weight_batch", "weight_row", "key_start", "count", "tiles", "parts",
                               "out_batch", "out_head", "out_part"])
def scores_kernel(query, query_batch: tl.int64, query_head: tl.int64, query_row: tl.int64, query_dim: tl.int64, key,
                  key_batch: tl.int64, key_head: tl.int64, key_token: tl.int64, key_dim: tl.int64, bounds, table,
                  table_batch: tl.int64, table_stride: tl.int64, table_length: tl.int64, block_size: tl.int64,
                  blocks: tl.int64, rows: tl.int64, keys: tl.int64, offset: tl.int64, group: tl.int64,
                  key_heads: tl.int64, d: tl.int32, factor: tl.float32, maxima, sums, stat_batch: tl.int64,
                  stat_head: tl.int64, stat_row: tl.int64, weights, weight_batch: tl.int64, weight_row: tl.int64,
                  key_start: tl.int64, count: tl.int64, tiles: tl.int64, parts: tl.int64, out, out_batch: tl.int64,
                  out_head: tl.int64, out_part: tl.int64, status, MODE: tl.constexpr, CAUSAL: tl.constexpr,
                  REDUCE_ROWS: tl.constexpr, REDUCE_HEADS: tl.constexpr, FLAT: tl.constexpr, PARTIAL: tl.constexpr,
                  UPCAST: tl.constexpr, FAST: tl.constexpr, EVEN_D: tl.constexpr, SINGLE: tl.constexpr,
                  BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    """Scores of a tile of keys from the key heads of one part, all or one. `maxima` is the given lse without `sums`.

    FLAT: rows and heads are reduced by one sum, so the rows of all heads of a group are packed into tiles.
    """
    if FAST:
        BITS: tl.constexpr = query.dtype.element_ty.primitive_bitwidth
        query_batch, query_head, query_row = whole(query_batch, BITS), whole(query_head, BITS), whole(query_row, BITS)
        key_batch, key_head, key_token = whole(key_batch, BITS), whole(key_head, BITS), whole(key_token, BITS)
    item = tl.program_id(0).to(tl.int64)
    part = item % parts
    tile = item // parts % tiles
    batch = item // parts // tiles
    if bounds is not None:
        words = bounds + batch * 4
        first = tl.load(words)
        rows = tl.load(words + 1)
        begin = tl.load(words + 2)
        keys = tl.load(words + 3)
        count = keys
        offset = keys - rows
        query += first * query_row
        if table is None:
            key += begin * key_token
        if MODE != LOGITS:
            maxima += first * stat_row
        if MODE == COMPUTED:
            sums += first * stat_row
        if weights is not None:
            weights += first * weight_row
        out += begin
    else:
        query += batch * query_batch
        key += batch * key_batch
        if MODE != LOGITS:
            maxima += batch * stat_batch
        if MODE == COMPUTED:
            sums += batch * stat_batch
        if weights is not None:
            weights += batch * weight_batch
        out += batch * out_batch
    if table is not None:
        table += batch * table_batch
    place = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    if tile * BLOCK_K < count:
        is_scored = place < count
        position = key_start + place
        weight_sum = rows.to(tl.float32)
        if (REDUCE_ROWS == "mean") & (weights is not None):
            weight_sum = tl.zeros((), tl.float32)
            for start in range(0, rows, BLOCK_R):
                row = start + tl.arange(0, BLOCK_R).to(tl.int64)
                weight_sum += tl.sum(tl.load(weights + row * weight_row, mask=row < rows, other=0.0), 0)
        packed_heads = group if FLAT else 1
        all_scores = tl.zeros((BLOCK_K,), tl.float32)
        all_best = tl.full((BLOCK_K,), NO_KEY, tl.int32)
        for head in range(part * (key_heads // parts), (part + 1) * (key_heads // parts)):
            key_rows, is_key = key_pointers(key + head * key_head, position, is_scored, key_batch, key_token, table,
                                            table_stride, table_length, block_size, blocks)
            if SINGLE:
                k = load_tile(key_rows, is_key, key_dim, 0, d, FAST, EVEN_D, BLOCK_D)
            if (table is not None) & (status is not None):  # noqa: SIM102 (decided at compile time)
                if (head == 0) & (tl.sum((is_scored & ~is_key).to(tl.int32), 0) > 0):
                    tl.atomic_or(status, BAD_INDEX)
            for first_head in range(0, group, packed_heads):
                scores = tl.zeros((BLOCK_K,), tl.float32)
                best = tl.full((BLOCK_K,), NO_KEY, tl.int32)
                for start in range(0, rows * packed_heads, BLOCK_R):
                    row = start + tl.arange(0, BLOCK_R).to(tl.int64)
                    is_row = row < rows * packed_heads
                    within = row % rows
                    row_head = head * group + first_head + row // rows
                    last = offset + tl.max(tl.where(is_row, within, 0), 0)
                    # A tile of keys that none of the rows sees costs nothing.
                    if (not CAUSAL) | (key_start + tile * BLOCK_K <= last):
                        query_rows = query + row_head * query_head + within * query_row
                        if SINGLE:
                            q = load_tile(query_rows, is_row, query_dim, 0, d, FAST, EVEN_D, BLOCK_D)
                            products = multiply(k, q, tl.zeros((BLOCK_K, BLOCK_R), tl.float32), UPCAST)
                        else:
                            products = multiply_blocks(key_rows, is_key, key_dim, query_rows, is_row, query_dim, d,
                                                       UPCAST, FAST, EVEN_D, BLOCK_K, BLOCK_R, BLOCK_D)
                        stat = row_head * stat_head + within * stat_row
                        if MODE == LOGITS:
                            values = products * factor
                        elif MODE == GIVEN:
                            lse = tl.load(maxima + stat, mask=is_row, other=0.0)
                            values = tl.exp2(products * factor - (lse * LOG2E)[None, :])
                        else:
                            most = tl.load(maxima + stat, mask=is_row, other=0.0)
                            shift = tl.where(most == float("-inf"), 0.0, most)
                            values = tl.exp2(products * factor - shift[None, :])
                            # A row that sees only -inf has a sum of 0: it becomes NaN.
                            values = values * (1.0 / tl.load(sums + stat, mask=is_row, other=1.0))[None, :]
                        seen = is_key[:, None] & is_row[None, :]
                        if weights is not None:
                            weight = tl.load(weights + within * weight_row, mask=is_row, other=0.0)
                            values = values * weight[None, :]
                            seen = seen & (weight != 0)[None, :]
                        if CAUSAL:
                            seen = seen & (position[:, None] <= offset + within[None, :])
                        if REDUCE_ROWS == "max":
                            best = tl.maximum(best, tl.max(tl.where(seen, max_key(values), NO_KEY), 1))
                        else:
                            scores += tl.sum(tl.where(seen, values, 0.0), 1)
                if REDUCE_ROWS == "max":
                    scores = key_value(best)
                elif REDUCE_ROWS == "mean":
                    scores = tl.where(weight_sum == 0, 0.0, scores / weight_sum)
                if REDUCE_HEADS == "none":
                    tl.store(out + (head * group + first_head) * out_head + place, scores + 0.0, mask=is_scored)
                elif REDUCE_HEADS == "max":
                    all_best = tl.maximum(all_best, max_key(scores))
                else:
                    all_scores += scores
        if REDUCE_HEADS != "none":
            if REDUCE_HEADS == "max":
                all_scores = key_value(all_best)
            if (REDUCE_HEADS == "mean") & (not PARTIAL):
                all_scores = all_scores / (key_heads * group).to(tl.float32)
            tl.store(out + part * out_part + place, all_scores + 0.0, mask=is_scored)


@triton.jit(do_not_specialize=["count", "columns", "parts", "heads", "out_batch"])
def combine_heads_kernel(parts_of_scores, count: tl.int64, columns: tl.int64, parts: tl.int64, heads: tl.int64, out,
                         out_batch: tl.int64, REDUCE_HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """Reduces [parts, count] over parts, in their order, to rows of `columns` scores."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = place < count
    scores = tl.zeros((BLOCK,), tl.float32)
    best = tl.full((BLOCK,), NO_KEY, tl.int32)
    for part in range(0, parts):
        more = tl.load(parts_of_scores + part.to(tl.int64) * count + place, mask=valid, other=0.0)
        if REDUCE_HEADS == "max":
            best = tl.maximum(best, max_key(more))
        else:
            scores += more
    if REDUCE_HEADS == "max":
        scores = key_value(best)
    elif REDUCE_HEADS == "mean":
        scores = scores / heads.to(tl.float32)
    tl.store(out + place // columns * out_batch + place % columns, scores + 0.0, mask=valid)


class Problem:
    """What both ops hand to the kernels: strides (batch, head, row, dim) of queries and keys, and sizes.

    Paged: the batch stride of the keys is that of the blocks. Packed: `bounds` has (row, rows, key, keys) of each
    sequence, and `rows` and `keys` are at least those of the longest.
    """

    def __init__(self, op: str, query: Tensor, query_strides: tuple, key: Tensor, key_strides: tuple, heads: int,
                 key_heads: int, batch: int, rows: int, keys: int, *, lse: Tensor | None, lse_strides: tuple,
                 row_weights: Tensor | None, weight_strides: tuple, scale: float | None, causal: bool, offset: int,
                 key_start: int, count: int, reduce_rows: str, reduce_heads: str, logits: bool, out: Tensor,
                 bounds: Tensor | None = None, table: Tensor | None = None, stat_rows: int = 0, stats: int = 0,
                 status: Tensor | None = None) -> None:
        self.op, self.query, self.key, self.out, self.bounds = op, query, key, out, bounds
        self.heads, self.key_heads, self.batch, self.rows, self.keys = heads, key_heads, batch, rows, keys
        self.causal, self.count, self.key_start, self.logits = causal, count, key_start, logits
        self.reduce_rows, self.reduce_heads, self.status = reduce_rows, reduce_heads, status
        self.lse, self.lse_strides = lse, lse_strides
        self.weights = (row_weights, *weight_strides)
        # Rows of all batch entries, for the maxima and sums: [heads, stat_rows] or [batch, heads, rows].
        self.stats, self.stat_rows = stats, stat_rows
        d = query.shape[-1]
        self.group = heads // key_heads
        self.config = lookup.config(op, _triton.device_name(query.device), query.dtype, r=rows * self.group, n=keys, d=d)
        fast = _triton.aligned16(query, *query_strides[:3]) and _triton.aligned16(key, *key_strides[:3])
        # Without alignment each element has an address of its own, in registers: tiles must be small.
        block_d = self.config["block_d"] if fast else min(32, self.config["block_d"])
        block_d = min(block_d, max(16, _triton.pow2_at_least(d)))
        self.flat = reduce_rows != "max" and reduce_heads in ("mean", "sum")
        tile_rows = rows * self.group if self.flat else rows
        self.block_r = min(self.config["block_r"], max(16, _triton.pow2_at_least(tile_rows)))
        self.options = {"CAUSAL": causal, "UPCAST": _triton.interpreted(), "FAST": fast, "EVEN_D": d % block_d == 0,
                        "SINGLE": d <= block_d, "BLOCK_K": self.config["block_k"], "BLOCK_D": block_d,
                        "num_warps": self.config["num_warps"], "num_stages": self.config["num_stages"]}
        factor = d ** -0.5 if scale is None else scale
        block_size, blocks = (key.shape[0], 0) if table is None else (out.shape[-1], key.shape[0])
        self.table = (table, 0, 0, 0, 1, 0) if table is None else (table, *table.stride(), table.shape[1],
                                                                   block_size, blocks)
        self.common: tuple[Any, ...] = (
            query, *query_strides, key, *key_strides, bounds, *self.table, rows, keys, offset, self.group, key_heads, d,
            factor if logits else factor * math.log2(math.e))
