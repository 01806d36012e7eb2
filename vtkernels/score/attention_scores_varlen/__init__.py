"""`attention_scores` for packed sequences, with packed or paged keys."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.attention_scores_varlen.default


def attention_scores_varlen(query: Tensor, key: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, total_k: int,
                            max_seqlen_q: int, max_seqlen_k: int, *, block_table: Tensor | None = None,
                            lse: Tensor | None = None, row_weights: Tensor | None = None, scale: float | None = None,
                            causal: bool = False, reduce_rows: str = "mean", reduce_heads: str = "mean",
                            logits: bool = False, kv_layout: str = "NHD") -> Tensor:
    """How much attention each key of B packed sequences receives from the rows of its own sequence.

    Args:
        query: `[Tq, Hq, d]` packed rows, float32, float16 or bfloat16, any strides.
        key: packed `[Tk, Hkv, d]` (`"NHD"`) or `[Hkv, Tk, d]` (`"HND"`); with `block_table` paged
            `[blocks, block_size, Hkv, d]` or `[blocks, Hkv, block_size, d]`. Dtype and device of `query`, any strides.
        cu_seqlens_q: `[B + 1]` int32 on the device: sequence i has rows `cu_seqlens_q[i] .. cu_seqlens_q[i + 1]`.
        cu_seqlens_k: `[B + 1]` int32, the same for keys; with paged keys their places in the output.
        total_k: keys of all sequences, the length of the output; Tk when the keys are packed.
        max_seqlen_q, max_seqlen_k: the most rows and keys of a sequence. Of a longer one only the first count.
        block_table: `[B, max_blocks]` int32: key p of sequence i lies in block `block_table[i, p // block_size]`.
        lse: `[Hq, Tq]` float32 logarithms of the softmax's denominators, as FlashAttention returns them.
        row_weights: `[Tq]` float32; rows of weight 0 are left out entirely.
        scale, reduce_rows, reduce_heads, logits: as in `attention_scores`.
        causal: the rows of a sequence are its last positions: row i sees the keys `j <= keys - rows + i`.
        kv_layout: of `key`.

    Returns:
        `[total_k]` float32, or `[Hq, total_k]` with `reduce_heads="none"`. A sequence without rows gives its keys 0;
        keys of no sequence are NaN.

    Numbers and NaN: as `attention_scores`. Device values are never read back: sequences that do not start at 0,
    descend, leave `0 .. T` or exceed a maximum are clamped; keys whose block is missing from the table or out of range
    are seen by no row and score 0. `torch.ops.vtkernels.attention_scores_varlen.out` reports each in a `status` word.

    Raises:
        TypeError, ValueError, RuntimeError: as `attention_scores`; also `total_k` other than Tk for packed keys.

    Example:
        >>> text, image = torch.randn(8, 4, 32), torch.randn(30, 2, 32)
        >>> cu_q, cu_k = torch.tensor([0, 3, 8], dtype=torch.int32), torch.tensor([0, 10, 30], dtype=torch.int32)
        >>> vtkernels.attention_scores_varlen(text, image, cu_q, cu_k, 30, 5, 20).shape
        torch.Size([30])

    Source: as `attention_scores`; the packed and paged layouts are those of FlashAttention (arXiv 2307.08691).
    """
    no_grad_needed("attention_scores_varlen", query=query, key=key, lse=lse, row_weights=row_weights)
    return _op(query, key, cu_seqlens_q, cu_seqlens_k, total_k, max_seqlen_q, max_seqlen_k, block_table=block_table,
               lse=lse, row_weights=row_weights, scale=scale, causal=causal, reduce_rows=reduce_rows,
               reduce_heads=reduce_heads, logits=logits, kv_layout=kv_layout)
