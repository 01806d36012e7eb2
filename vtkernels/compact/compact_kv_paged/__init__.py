"""Keep some tokens of each sequence in a paged K/V cache, and say which pages became free."""

from collections.abc import Sequence

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.compact_kv_paged.default


def compact_kv_paged(kv: Sequence[Tensor], block_table: Tensor, seq_lens: Tensor, indices: Tensor, *,
                     counts: Tensor | None = None, dst_block_table: Tensor | None = None, kv_layout: str = "NHD",
                     allow_shared: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Move the kept tokens of each sequence to the front of its pages, or into new pages, in all caches at once.

    Changes `kv`. Any dtype, byte for byte (float8 and packed formats too); a scale per tensor or head stays as it is.

    Args:
        kv: pools that share the tables, such as K and V of all layers: views `[blocks, block_size, H, d]` (`"NHD"`) or
            `[blocks, H, block_size, d]` (`"HND"`) of any strides. H, d and dtype may differ from pool to pool.
        block_table: `[B, max_blocks]` int32, the pages of each sequence in order.
        seq_lens: `[B]` int32, tokens in the cache of each sequence.
        indices: `[B, k]` int32 or int64, positions in the sequence to keep: ascending, -1 padded at the end.
        counts: `[B]` int32, how many of the indices count; without it, those that are not -1.
        dst_block_table: `[B, max_dst_blocks]` int32, new pages of the same pools. Without it the sequence is compacted
            in place: tokens move to the front of its own pages.
        kv_layout: `"NHD"` or `"HND"`.
        allow_shared: with `dst_block_table`, pages of several sequences (prefix caching) may be read.

    Returns:
        seq_lens: `[B]` int32, the new lengths.
        slot_mapping: `[B, k]` int64, page * block_size + offset of each kept token's new place, -1 padded.
        freed_blocks: `[B, max_blocks]` int32, pages of `block_table` that hold nothing of the sequence any more, -1
            padded. With `allow_shared` another sequence may still read them: drop one reference of each.

    Layouts of engines, as views:
        vLLM, `[L, B, H, N, C]` of any strides: `kv=list(cache.unbind(0))`, `"HND"` (C holds K and V).
        Older vLLM, `[2, blocks, block_size, H, d]` per layer: `kv=[t for layer in caches for t in layer.unbind(0)]`.
        FlashInfer, `[pages, 2, block_size, H, d]` or `[pages, 2, H, block_size, d]`: `cache.unbind(1)`.
        SGLang, `[slots, H, d]`: `buffer[:, None]`, block_size 1, with `req_to_token` rows as `block_table`.

    Nothing is read back to the host, so bad metadata shows in the results: a sequence is compacted as a whole or left
    as it was, byte for byte. Left as it was (its length is returned unchanged, or 0 with `dst_block_table`, its slots
    and freed blocks are -1) is a sequence with a length outside its table, indices that do not ascend or are outside
    the sequence, a page outside the pool, or a page that is not its own. A page must be named once in all live pages
    of the call (those that the lengths need; all of a table whose length is bad). Exempt are the leading pages of a
    compaction in place whose tokens all stay where they are, and what `allow_shared` exempts. New pages must not be
    live pages of any sequence, nor named twice. `torch.ops.vtkernels.compact_kv_paged.out` says which of this happened
    in a `status` word. Pages of requests outside the call are not known to it: a table that names one is taken at its
    word.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes and devices that do not fit, an expanded pool, a pool given twice.
        RuntimeError: the same from the native backends, or a pool that requires a gradient.

    Example:
        >>> pool = torch.arange(6.).view(3, 2, 1, 1)  # 3 pages of 2 tokens
        >>> table, kept = torch.tensor([[2, 0]], dtype=torch.int32), torch.tensor([[1, 2, -1]])
        >>> vtkernels.compact_kv_paged([pool], table, torch.tensor([4], dtype=torch.int32), kept)
        (tensor([2], dtype=torch.int32), tensor([[ 4,  5, -1]]), tensor([[ 0, -1]], dtype=torch.int32))
        >>> pool.flatten()
        tensor([0., 1., 2., 3., 5., 0.])
    """
    no_grad_needed("compact_kv_paged", kv=kv)
    return _op(kv, block_table, seq_lens, indices, counts=counts, dst_block_table=dst_block_table,
               kv_layout=kv_layout, allow_shared=allow_shared)
