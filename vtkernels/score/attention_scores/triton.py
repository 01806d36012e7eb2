"""A tile of keys against all rows that its head serves: S^T = K Q^T, so that a key's sum over rows stays in registers.

Work is split over keys, and over key heads where tiles of keys alone would leave the GPU idle; what the heads of keys
find is then added in their order. Without `lse` a kernel before finds the maximum and the sum of each row over a fixed
number of keys at a time, and a small one combines them.
"""

import math
from dataclasses import dataclass
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
COMBINE_BLOCK = 128


@triton.jit
def max_key(x):
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # + 0.0 turns -0 into +0
    return tl.where(x != x, NAN_KEY, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def key_value(key):
    """The value of a key, 0 for none.

    Without a comparison of keys: Triton 3.9 takes a running maximum for its initial value on AMD and folds it.
    """
    value = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    nan_or_none = (((key ^ -1) >> 31) & 0x7FC00000).to(tl.float32, bitcast=True)  # NaN over 0, 0 below
    return tl.where(value != value, nan_or_none, value)


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


@triton.jit
def sees(first, last, BLOCK_K: tl.constexpr):
    """[BLOCK_K, R]: keys from `first` on, up to the last one of each row; 32-bit numbers save registers."""
    limit = tl.minimum(tl.maximum(last - first, -1), BLOCK_K).to(tl.int32)
    return tl.arange(0, BLOCK_K)[:, None] <= limit[None, :]


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
                seen = seen & sees(start, offset + within, BLOCK_K)
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
        most = tl.maximum(most, tl.load(maxima + split * count + row, mask=valid, other=0.0))
    shift = tl.where(most == float("-inf"), 0.0, most)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(0, splits):
        place = split * count + row
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
            group_scores = tl.zeros((BLOCK_K,), tl.float32)
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
                first_row = tl.zeros((), tl.int64)
                if CAUSAL and not FLAT:  # the rows before see none of these keys
                    first_row = tl.maximum(key_start + tile * BLOCK_K - offset, 0) // BLOCK_R * BLOCK_R
                for start in range(first_row, rows * packed_heads, BLOCK_R):
                    row = start + tl.arange(0, BLOCK_R).to(tl.int64)
                    is_row = row < rows * packed_heads
                    within = row % rows
                    row_head = head * group + first_head + row // rows
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
                        seen = seen & sees(key_start + tile * BLOCK_K, offset + within, BLOCK_K)
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
                    group_scores += scores
            all_scores += group_scores
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
        more = tl.load(parts_of_scores + part * count + place, mask=valid, other=0.0)
        if REDUCE_HEADS == "max":
            best = tl.maximum(best, max_key(more))
        else:
            scores += more
    if REDUCE_HEADS == "max":
        scores = key_value(best)
    elif REDUCE_HEADS == "mean":
        scores = scores / heads.to(tl.float32)
    tl.store(out + place // columns * out_batch + place % columns, scores + 0.0, mask=valid)


@dataclass
class Attention:
    """What both ops hand to the kernels. Strides are (batch, head, row, dim) or the first of these.

    Packed: `bounds` holds (row, rows, key, keys) of each sequence, and `rows` and `keys` are those of the longest.
    Paged: `table` too, and the batch stride of the keys is that of the blocks.
    """

    op: str
    query: Tensor
    query_strides: tuple[int, ...]
    key: Tensor
    key_strides: tuple[int, ...]
    batch: int
    heads: int
    key_heads: int
    rows: int
    keys: int
    all_rows: int  # of the batch
    lse: Tensor | None
    row_weights: Tensor | None
    scale: float | None
    causal: bool
    offset: int
    key_start: int
    count: int     # keys of a sequence that are scored
    reduce_rows: str
    reduce_heads: str
    logits: bool
    out: Tensor
    parts: int | None
    bounds: Tensor | None = None
    table: Tensor | None = None
    block_size: int = 1
    status: Tensor | None = None

    def __post_init__(self) -> None:
        d = self.query.shape[-1]
        self.group = self.heads // self.key_heads
        self.config = lookup.config(self.op, _triton.device_name(self.query.device), self.query.dtype,
                                    r=self.rows * self.group, n=self.keys, d=d)
        fast = (_triton.aligned16(self.query, *self.query_strides[:3])
                and _triton.aligned16(self.key, *self.key_strides[:3]))
        # Without alignment each element has an address of its own, in registers: tiles must be small.
        block_d = self.config["block_d"] if fast else min(32, self.config["block_d"])
        block_d = min(block_d, max(16, _triton.pow2_at_least(d)))
        self.options = {"CAUSAL": self.causal, "UPCAST": _triton.interpreted(), "FAST": fast,
                        "EVEN_D": d % block_d == 0, "SINGLE": d <= block_d, "BLOCK_K": self.config["block_k"],
                        "BLOCK_D": block_d, "num_warps": self.config["num_warps"],
                        "num_stages": self.config["num_stages"]}
        self.tiles = triton.cdiv(self.count, self.config["block_k"])
        if self.parts is None:
            enough = 2 * _triton.multiprocessors(self.query.device)
            split = self.reduce_heads == "none" or self.batch * self.tiles < enough
            self.parts = self.key_heads if split else 1
        total = self.out.shape[-1] if self.bounds is not None else self.batch * self.count
        self.partial = None
        if self.parts > 1 and self.reduce_heads != "none":
            self.partial = torch.empty(self.parts, total, dtype=torch.float32, device=self.out.device)

    def block_r(self, rows: int) -> int:
        return min(self.config["block_r"], max(16, _triton.pow2_at_least(rows)))

    def common(self) -> tuple:
        d = self.query.shape[-1]
        factor = d ** -0.5 if self.scale is None else self.scale
        table: tuple[Any, ...] = (None, 0, 0, 0, 1, 0)
        if self.table is not None:
            table = (self.table, *self.table.stride(), self.table.shape[1], self.block_size, self.key.shape[0])
        return (self.query, *self.query_strides, self.key, *self.key_strides, self.bounds, *table, self.rows, self.keys,
                self.offset, self.group, self.key_heads, d, factor if self.logits else factor * math.log2(math.e))

    def row_sums(self) -> tuple:
        """Maxima and sums of all rows, and their strides (batch, head, row)."""
        split_keys = self.config["split_keys"]
        splits = triton.cdiv(self.keys, split_keys)
        packed = self.bounds is not None
        strides = (0, self.all_rows, 1) if packed else (self.heads * self.rows, self.rows, 1)
        count = self.heads * self.all_rows
        maxima, sums = torch.empty(2, max(splits, 1), count, dtype=torch.float32, device=self.query.device)
        block_r = self.block_r(self.rows * self.group)
        row_tiles = triton.cdiv(self.rows * self.group, block_r)
        programs = self.batch * self.key_heads * row_tiles * splits
        if programs:
            _triton.launch(row_sums_kernel, programs, self.query.device, *self.common(), maxima, sums, *strides, count,
                           row_tiles, splits, BLOCK_R=block_r, SPLIT_KEYS=split_keys, **self.options)
        if splits > 1:
            _triton.launch(combine_rows_kernel, triton.cdiv(count, COMBINE_BLOCK), self.query.device, maxima, sums,
                           count, splits, BLOCK=COMBINE_BLOCK, num_warps=4)
        return maxima, sums, *strides

    def launch(self) -> None:
        no_batch = () if self.bounds is None else (0,)  # packed tensors have no batch stride
        mode = LOGITS
        stats: tuple[Any, ...] = (None, None, 0, 0, 0)
        if self.lse is not None:
            mode, stats = GIVEN, (self.lse, None, *no_batch, *self.lse.stride())
        elif not self.logits:
            mode, stats = COMPUTED, self.row_sums()
        weights: tuple[Any, ...] = (None, 0, 0)
        if self.row_weights is not None:
            weights = (self.row_weights, *no_batch, *self.row_weights.stride())
        # Rows of several heads in a tile cannot be left out together.
        flat = (self.reduce_rows != "max" and self.reduce_heads in ("mean", "sum")
                and (not self.causal or self.rows <= self.config["block_r"]))
        target, out_head, out_part = self.out, 0, 0
        out_batch = self.out.stride(0) if self.bounds is None else 0
        if self.reduce_heads == "none":
            out_head = self.out.stride(-2)
        elif self.partial is not None:
            target, out_batch, out_part = self.partial, self.count, self.partial.stride(0)
        _triton.launch(scores_kernel, self.batch * self.tiles * self.parts, self.query.device, *self.common(), *stats,
                       *weights, self.key_start, self.count, self.tiles, self.parts, target, out_batch, out_head,
                       out_part, self.status, MODE=mode.value, REDUCE_ROWS=self.reduce_rows,
                       REDUCE_HEADS=self.reduce_heads, FLAT=flat, PARTIAL=self.partial is not None,
                       BLOCK_R=self.block_r(self.rows * self.group if flat else self.rows), **self.options)
        if self.partial is not None:
            parts, total = self.partial.shape
            columns = total if self.bounds is not None else self.count
            _triton.launch(combine_heads_kernel, triton.cdiv(total, COMBINE_BLOCK), self.query.device, self.partial,
                           total, columns, parts, self.heads, self.out, self.out.stride(0) if self.out.dim() > 1 else 0,
                           REDUCE_HEADS=self.reduce_heads, BLOCK=COMBINE_BLOCK, num_warps=4)


def attention_scores_out(query: Tensor, key: Tensor, *, lse: Tensor | None = None, row_weights: Tensor | None = None,
                         scale: float | None = None, causal: bool = False, causal_offset: int | None = None,
                         key_start: int = 0, key_len: int = -1, reduce_rows: str = "mean", reduce_heads: str = "mean",
                         logits: bool = False, layout: str = "HND", out: Tensor, _parts: int | None = None) -> None:
    """`_parts` is for tests and benchmarks: 1, or the heads of `key`, programs for each tile of keys."""
    if out.numel() == 0:
        return
    if layout == "NHD":
        query, key = query.transpose(1, 2), key.transpose(1, 2)
    batch, heads, rows, _ = query.shape
    keys = key.shape[2]
    offset = max(-rows, min(keys - rows if causal_offset is None else causal_offset, keys))
    Attention("attention_scores", query, query.stride(), key, key.stride(), batch, heads, key.shape[1], rows, keys,
              batch * rows, lse, row_weights, scale, causal, offset, key_start, out.shape[-1], reduce_rows,
              reduce_heads, logits, out, _parts).launch()
