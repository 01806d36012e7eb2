"""What the kernels of the attention scores share: tiles of rows and keys, their products, pages, keys of maxima."""

import triton
import triton.language as tl

NAN_KEY = tl.constexpr(2**31 - 1)  # over the key of +inf, so that a maximum of keys propagates NaN
NO_KEY = tl.constexpr(-(2**31))    # under the key of -inf: nothing
# Arguments of both kernels that read queries and keys.
COMMON = ["query_batch", "query_head", "query_row", "query_dim", "key_batch", "key_head", "key_token", "key_dim",
          "table_batch", "table_stride", "table_length", "block_size", "blocks", "rows", "keys", "offset", "group",
          "key_heads", "d", "factor", "stat_batch", "stat_head", "stat_row"]


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
