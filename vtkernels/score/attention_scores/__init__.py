"""Score keys by the attention that they receive."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.attention_scores.default


def attention_scores(query: Tensor, key: Tensor, *, lse: Tensor | None = None, row_weights: Tensor | None = None,
                     scale: float | None = None, causal: bool = False, causal_offset: int | None = None,
                     key_start: int = 0, key_len: int = -1, reduce_rows: str = "mean", reduce_heads: str = "mean",
                     logits: bool = False, layout: str = "HND") -> Tensor:
    """How much attention each key receives from the query rows: columns of the attention matrix, reduced over rows and
    heads, without storing the matrix. Works beside FlashAttention, which does not return it.

    `a[i, j] = softmax_j(scale * <q_i, k_j>)` over the keys that row i sees; then per head `r[j]` over the rows, then
    over the query heads.

    Args:
        query: `[B, Hq, Tq, d]` (`"HND"`) or `[B, Tq, Hq, d]` (`"NHD"`), float32, float16 or bfloat16, any strides: the
            rows that ask, for example the text rows, the last row or the CLS row.
        key: `[B, Hkv, S, d]` or `[B, S, Hkv, d]`, dtype and device of `query`, Hq a multiple of Hkv: query head h uses
            key head `h // (Hq / Hkv)`.
        lse: `[B, Hq, Tq]` float32, natural logarithm of the softmax's denominator, as FlashAttention returns it: then
            `a = exp(scale * <q_i, k_j> - lse_i)` in one pass. Without it the denominators are computed.
        row_weights: `[B, Tq]` float32 weight w of each row (1 when absent). Rows of weight 0 are left out entirely,
            whatever they hold.
        scale: of the products, `1 / sqrt(d)` when absent.
        causal: row i sees only the keys `j <= causal_offset + i`.
        causal_offset: position of row 0, `S - Tq` when absent (the rows are the last ones). Any integer.
        key_start, key_len: the keys that are scored, -1: to the end. The softmax runs over all keys all the same.
        reduce_rows: `"mean"` is `sum_i w_i a_ij / sum_i w_i` (0 when the weights sum to 0), `"sum"` is
            `sum_i w_i a_ij`, `"max"` is `max_i w_i a_ij` over the rows that see key j (0 when there is none).
        reduce_heads: `"mean"`, `"sum"` or `"max"` over the query heads, or `"none"`.
        logits: reduce `scale * <q_i, k_j>` itself, without a softmax. Sums and means may add the rows before they meet
            the keys: infinite products of opposite signs give NaN or an infinity.
        layout: of `query` and `key`.

    Returns:
        `[B, key_len]` float32, or `[B, Hq, key_len]` with `reduce_heads="none"`.

    Numbers: products and sums in float32, exponentials of differences to the row's maximum. A pair of a row and a key
    that it does not see takes no part, whatever they hold; a row that sees no key contributes 0. Without `lse`, a NaN
    or +inf among the logits that a row sees, or all of them -inf, makes the row NaN, as `torch.softmax` does; with
    `lse` or `logits` only that entry. NaN passes through every reduction, `max` too. The result for a batch entry does
    not depend on the others, nor on the number of threads, and repeats bitwise on one device and configuration.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes, devices, reductions or a span that do not fit; `causal_offset` without `causal`; `lse` with
            `logits`.
        RuntimeError: the same from the native backends, or an input that requires a gradient.

    Example:
        >>> text, image = torch.randn(1, 28, 16, 64), torch.randn(1, 4, 576, 64)
        >>> scores = vtkernels.attention_scores(text, image)
        >>> scores.shape, bool((scores.sum() - 1).abs() < 1e-4)
        (torch.Size([1, 576]), True)

    Source: the score of FastV (arXiv 2403.06764), SparseVLM (arXiv 2410.04417) and SnapKV (arXiv 2404.14469);
    `logits=True` is that of ScaleKV (arXiv 2505.19602).
    """
    no_grad_needed("attention_scores", query=query, key=key, lse=lse, row_weights=row_weights)
    return _op(query, key, lse=lse, row_weights=row_weights, scale=scale, causal=causal, causal_offset=causal_offset,
               key_start=key_start, key_len=key_len, reduce_rows=reduce_rows, reduce_heads=reduce_heads,
               logits=logits, layout=layout)
