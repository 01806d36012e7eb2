"""The scores of a tile of keys from all rows that its head serves, and their reduction over parts of the heads."""

import triton
import triton.language as tl

from ..._library import STATUS_BAD_INDEX
from ._tiles import COMMON, NO_KEY, key_pointers, key_value, load_tile, max_key, multiply, multiply_blocks, sees, whole

LOG2E = tl.constexpr(1.4426950408889634)
BAD_INDEX = tl.constexpr(STATUS_BAD_INDEX)
LOGITS, GIVEN, COMPUTED = (tl.constexpr(i) for i in range(3))


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
