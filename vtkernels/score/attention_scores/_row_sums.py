"""The maximum and the sum of exponentials of each row, over a fixed number of keys at a time and then over all."""

import triton
import triton.language as tl

from ._tiles import COMMON, key_pointers, load_tile, multiply, multiply_blocks, sees, whole


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
