"""The flagship: drop the most redundant visual tokens, hidden states and caches included, in one pass."""

from collections.abc import Sequence

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.prune_topk.default


def prune_topk(hidden: Tensor, prototypes: Tensor, k: int, kv: Sequence[Tensor] | None = None, *,
               keep_similar: bool = False, span_start: int = 0, span_len: int = -1,
               span_starts: Tensor | None = None, prototype_rnorm: Tensor | None = None,
               kv_layout: str = "HND") -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Keep the k visual tokens that are least similar to a codebook of redundant prototypes.

    Each token of the visual span is scored by its largest cosine similarity to the prototypes; the k lowest stay (the
    k highest with `keep_similar`), and with them all text before and after the span. Hidden states and every aligned
    cache are gathered. The same op is `torch.ops.vtkernels.prune_topk`; its `.out` variant writes into given buffers.

    Args:
        hidden: `[B, N, D]` float32, float16 or bfloat16, any strides.
        prototypes: `[P, D]`, P >= 1, dtype and device of `hidden`.
        k: tokens kept of those that compete, 0 <= k <= span length. A host number, so output shapes are static.
        kv: aligned caches, any number (K and V of one layer, or of all), each `[B, H, N, d]` (`"HND"`) or
            `[B, N, H, d]` (`"NHD"`), any dtype, any strides.
        keep_similar: keep the most similar tokens instead.
        span_start: first token of the visual span.
        span_len: its length; -1 means to the end of the row.
        span_starts: `[B]` int32 on the device: a start per row, in place of `span_start` (rows padded differently, no
            recapture of a CUDA graph); `span_len` must then be given. Values outside `0 .. N - span_len` are clamped.
        prototype_rnorm: `[P]` float32 reciprocal norms of the prototypes (0 for a zero prototype), to save their
            computation.
        kv_layout: `"HND"` or `"NHD"`.

    Returns:
        hidden: `[B, N', D]`, N' = N - span length + k.
        kv: the caches with N' tokens, same layout, contiguous.
        indices: `[B, N']` int64, ascending: the position in the input row of each output token.
        scores: `[B, span length]` float32, the maximum cosine similarity (higher is more redundant).

    Ties and NaN: equal scores prefer the lower position; a NaN score ranks last whatever the direction, so such a
    token is dropped first. Numbers as in `prototype_scores`. A row's result does not depend on its neighbours in the
    batch, and repeats bitwise on one device and configuration. Memory beyond the outputs is one tile and O(N).

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes, devices, k or a span that do not fit.
        RuntimeError: the same from the native backends, or an input that requires a gradient.

    Example:
        >>> hidden, codebook = torch.randn(1, 576, 1024), torch.randn(64, 1024)
        >>> k, v = torch.randn(2, 1, 16, 576, 64)
        >>> hidden, (k, v), indices, scores = vtkernels.prune_topk(hidden, codebook, 144, [k, v])
        >>> hidden.shape, k.shape
        (torch.Size([1, 144, 1024]), torch.Size([1, 16, 144, 64]))

    Source: RedundancyCodebook (arXiv 2503.20540), its exact-count variant; the spans, caches and batching are ours.
    """
    no_grad_needed("prune_topk", hidden=hidden, prototypes=prototypes, kv=kv)
    return _op(hidden, prototypes, k, kv, keep_similar=keep_similar, span_start=span_start, span_len=span_len,
               span_starts=span_starts, prototype_rnorm=prototype_rnorm, kv_layout=kv_layout)
