"""Pack K and V into 8, 4 or 2 bits, by the importance of their tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._checks import fail, no_grad_needed
from ..._library import OPS
from ...select.select_topk import select_topk

_op = OPS.quantize_kv.default


def quantize_kv(key: Tensor, value: Tensor, indices: Sequence[Tensor],
                bits: Sequence[int]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Quantise the K and V of one layer, each class of tokens with its own number of bits.

    Args:
        key, value: `[B, H, N, d]`, float32, float16 or bfloat16, the same shape and dtype, any strides: a cache of
            layout `[B, N, H, d]` goes in as `key.transpose(1, 2)`, without a copy.
        indices: for each class the tokens in it, `[B, k]` int32 or int64 (`importance_classes` makes them from
            scores). Tokens of no class are dropped; one may be in several.
        bits: for each class 8, 4 or 2.

    Returns:
        A list over the classes of each of these; together they are all that has to be stored:
        key_codes: `[B, H, k, ceil(d * bits / 8)]` uint8, rows in the order of `indices`.
        key_params: `[B, H, 2, d]` float32, smallest value and step of each channel of the class.
        value_codes: as `key_codes`.
        value_params: `[B, H, k, 2]` float32, smallest value and step of each token.
        value_scales: `[B, H, d]` float32, what each channel was divided by before, `sqrt(max |v|)`, 1 where that is 0.

    With `L = 2**bits - 1`, a group (a channel of K in its class, or a scaled token of V) from `low` to `high` has
    `step = (high - low) / L`, a value the level `round((x - low) / step)` (halves up), and comes back as
    `low + level * step`: no further from `x` than half a step (times its channel's scale in V) and the rounding of
    float32 and of the dtype. A constant group comes back exactly; so does one with a step below the smallest normal
    float32, but for that little. Byte i of a row holds the values i, i + b, i + 2 b, .. (b bytes in a row), the first
    one in its lowest bits.

    A group that holds NaN or an infinity, or whose range float32 cannot hold, comes back as NaN as a whole: a channel
    of its class in K, a token in V (whose infinities do not count in the channels' scales). A position outside the row
    makes a row of zero codes that counts nowhere, and sets a bit of the `status` word of the `.out` variant. A class
    without tokens has ranges of 0.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes or devices that differ, no class, bits other than 2, 4 and 8.
        RuntimeError: the same from the native backends, or an input that requires a gradient.

    Example:
        >>> key, value = torch.randn(2, 1, 8, 576, 64)
        >>> classes = vtkernels.importance_classes(torch.rand(1, 576), [144, 432])
        >>> codes = vtkernels.quantize_kv(key, value, classes, [4, 2])
        >>> [tuple(t.shape) for t in codes[0]]
        [(1, 8, 144, 32), (1, 8, 432, 16)]
        >>> restored, _ = vtkernels.dequantize_kv(*codes, classes, [4, 2], 576, dtype=key.dtype)
        >>> restored.shape
        torch.Size([1, 8, 576, 64])

    Source: keys by channel, values by token after a scale for each channel, fewer bits for less salient tokens:
    ZipCache (arXiv 2405.14256), used by ZipVL (arXiv 2410.08584).
    """
    no_grad_needed("quantize_kv", key=key, value=value)
    return _op(key, value, indices, bits)


def importance_classes(scores: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Cut the tokens of each row into classes by their scores, the best first.

    Args:
        scores: `[B, N]` float32, larger is more important; ties and NaN as in `select_topk`.
        counts: tokens in each class; they add up to N, so shapes are known on the host.

    Returns:
        For each class `[B, count]` int64, ascending positions.

    Example:
        >>> vtkernels.importance_classes(torch.tensor([[0.1, 0.9, 0.5, 0.7]]), [1, 3])
        [tensor([[1]]), tensor([[0, 2, 3]])]
    """
    if sum(counts) != scores.shape[-1] or min(counts, default=-1) < 0:
        fail(ValueError, "importance_classes", "counts", list(counts),
             f"numbers of at least 0 that add up to N, here {scores.shape[-1]}")
    level = scores.new_zeros(scores.shape, dtype=torch.int32)
    better = 0
    for count in counts[:-1]:
        better += count
        chosen = select_topk(scores, better)
        level.scatter_add_(1, chosen, level.new_full((1, 1), -1).expand_as(chosen))
    return list(level.sort(dim=1, stable=True).indices.split(list(counts), 1))
