"""`prune_topk_varlen` for sequences whose K and V are in pages."""

from collections.abc import Sequence

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.prune_topk_paged.default


def prune_topk_paged(hidden: Tensor, prototypes: Tensor, cu_seqlens: Tensor, k: Tensor, total_out: int,
                     kv: Sequence[Tensor], block_table: Tensor, seq_lens: Tensor, *, keep_similar: bool = False,
                     context_lens: Tensor | None = None, span_starts: Tensor | None = None,
                     span_lens: Tensor | None = None, prototype_rnorm: Tensor | None = None,
                     dst_block_table: Tensor | None = None, kv_layout: str = "NHD",
                     allow_shared: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Prune each of B packed sequences to its own count, and its pages of all caches by the same selection.

    Changes `kv`. Tokens of the cache before and after those in `hidden` stay, as do those outside the visual span.

    Args:
        hidden: `[T, D]` packed tokens, float32, float16 or bfloat16.
        prototypes: `[P, D]`, P >= 1, dtype and device of `hidden`.
        cu_seqlens: `[B + 1]` int32: sequence i is tokens `cu_seqlens[i] .. cu_seqlens[i + 1]` of `hidden`.
        k: `[B]` int32, tokens kept of each visual span.
        total_out: rows of the output, an upper bound of the tokens kept: rows past the last sequence are zero-filled,
            their index and slot is -1.
        kv: pools of pages, K and V of one or all layers: views `[blocks, block_size, H, d]` (`"NHD"`) or
            `[blocks, H, block_size, d]` (`"HND"`) of any dtype and strides, as in `compact_kv_paged`.
        block_table: `[B, max_blocks]` int32, the pages of each sequence in order.
        seq_lens: `[B]` int32, tokens in the cache of each sequence, those of `hidden` included.
        keep_similar: keep the most similar tokens instead.
        context_lens: `[B]` int32, the place in the cache of each sequence's first token in `hidden`. Without it, the
            tokens of `hidden` are the last ones of the cache.
        span_starts, span_lens: `[B]` int32, visual span of each sequence, relative to its first token in `hidden`;
            both or neither (all its tokens).
        prototype_rnorm: `[P]` float32 reciprocal norms of the prototypes.
        dst_block_table: `[B, max_dst_blocks]` int32, new pages; without it the caches are compacted in place.
        kv_layout: `"NHD"` or `"HND"`.
        allow_shared: with `dst_block_table`, pages of several sequences (prefix caching) may be read.

    Returns:
        hidden `[total_out, D]`, indices `[total_out]` int64 (ascending positions in `hidden`), scores `[T]` float32
        (NaN where a token did not compete), cu_seqlens `[B + 1]` int32 of the output; then seq_lens `[B]` int32, the
        new lengths of the caches, slot_mapping `[total_out]` int64, where K and V of each output row now are (page *
        block_size + offset), freed_blocks `[B, max_blocks]` int32, -1 padded, as `compact_kv_paged` returns them.

    Ties, NaN and clamping are those of `prune_topk_varlen`, the rules about pages those of `compact_kv_paged`: the
    cache of a sequence whose tables or lengths are bad is left as it was (its `hidden` is pruned all the same), its
    slots are -1. Tokens that do not fit `total_out` leave the cache too. Nothing is read back to the host;
    `torch.ops.vtkernels.prune_topk_paged.out` says what happened in a `status` word.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes, devices or sizes that do not fit, an expanded pool, a pool given twice.
        RuntimeError: the same from the native backends, or an input that requires a gradient.

    Example:
        >>> ints = lambda *values: torch.tensor(values, dtype=torch.int32)
        >>> tokens, codebook, pools = torch.randn(10, 64), torch.randn(8, 64), [torch.randn(6, 4, 2, 16)]
        >>> tables = torch.stack([ints(3, 1), ints(0, 5)])
        >>> out = vtkernels.prune_topk_paged(tokens, codebook, ints(0, 5, 10), ints(2, 4), 6, pools, tables, ints(5, 8))
        >>> out[0].shape, out[4].tolist(), out[6].tolist()
        (torch.Size([6, 64]), [2, 7], [[1, -1], [-1, -1]])
    """
    no_grad_needed("prune_topk_paged", hidden=hidden, prototypes=prototypes, kv=kv)
    return _op(hidden, prototypes, cu_seqlens, k, total_out, kv, block_table, seq_lens, keep_similar=keep_similar,
               context_lens=context_lens, span_starts=span_starts, span_lens=span_lens,
               prototype_rnorm=prototype_rnorm, dst_block_table=dst_block_table, kv_layout=kv_layout,
               allow_shared=allow_shared)
