"""K and V back from their codes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._checks import not_nested
from ..._library import OPS

_op = OPS.dequantize_kv.default


def dequantize_kv(key_codes: Sequence[Tensor], key_params: Sequence[Tensor], value_codes: Sequence[Tensor],
                  value_params: Sequence[Tensor], value_scales: Sequence[Tensor], indices: Sequence[Tensor],
                  bits: Sequence[int], tokens: int, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Restore the caches that `quantize_kv` packed, tokens in their old order.

    Args:
        key_codes, key_params, value_codes, value_params, value_scales: what `quantize_kv` returned, a list over the
            classes each; any strides.
        indices: the tokens of each class, as given to `quantize_kv`.
        bits: the bits of each class.
        tokens: N, rows of the caches.
        dtype: float32, float16 or bfloat16.

    Returns:
        key, value: `[B, H, tokens, d]`. A token of no class is a row of zeros; one of several classes is that of the
        last of them.

    How far values are from the old ones: see `quantize_kv`. Levels are multiplied and added in float32, then rounded
    once. A position outside the row is left out and sets a bit of the `status` word of the `.out` variant. The buffers
    of the `.out` variant may have any strides but in the last dimension, so they may be caches of layout
    `[B, N, H, d]`.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes that are not those of `quantize_kv`, bits other than 2, 4 and 8.
        RuntimeError: the same from the native backends.

    Example:
        >>> key, value = torch.randn(2, 1, 2, 8, 16)
        >>> everything = [torch.arange(8)[None]]
        >>> packed = vtkernels.quantize_kv(key, value, everything, [8])
        >>> restored, _ = vtkernels.dequantize_kv(*packed, everything, [8], 8, dtype=key.dtype)
        >>> float((restored - key).abs().max()) < 0.02
        True

    Source: ZipCache (arXiv 2405.14256).
    """
    not_nested("dequantize_kv", key_codes=key_codes, value_codes=value_codes)
    return _op(key_codes, key_params, value_codes, value_params, value_scales, indices, bits, tokens, dtype=dtype)
