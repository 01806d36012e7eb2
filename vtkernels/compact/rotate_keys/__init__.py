"""Turn rotary keys to new positions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._checks import fail, not_nested
from ..._library import OPS

_op = OPS.rotate_keys.default


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keys: Tensor, deltas: Tensor, inv_freq: Tensor, options: dict[str, Any]) -> Tensor:
        ctx.save_for_backward(deltas, inv_freq)
        ctx.options = options
        return _op(keys, deltas, inv_freq, **options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        deltas, inv_freq = ctx.saved_tensors
        return _op(grads[0], -deltas, inv_freq, **ctx.options), None, None, None


def rotate_keys(keys: Tensor, deltas: Tensor, inv_freq: Tensor, *, interleaved: bool = False,
                kv_layout: str = "HND") -> Tensor:
    """Rotate keys that carry rotary positions (RoPE, M-RoPE) by the difference to their new positions.

    After `gather_kv` a cache has gaps in its positions; with `deltas` = new - old positions its keys become those of
    the same tokens at consecutive positions. Each pair (x, y) of a key becomes (x cos a - y sin a, y cos a + x sin a)
    with a = delta * inv_freq; dimensions beyond 2 * pairs stay as they are.

    Args:
        keys: `[B, H, N, d]` (`"HND"`) or `[B, N, H, d]` (`"NHD"`), float32, float16 or bfloat16, any strides.
        deltas: `[B, N]` int32 or int64, new minus old position; or `[axes, B, N]` for M-RoPE, whose positions have
            three axes.
        inv_freq: `[pairs]` float32, radians per position of each pair, 2 * pairs <= d, as the model's rotary embedding
            holds it; or `[axes, pairs]`, whose angles add up: `mrope_inv_freq` makes it.
        interleaved: pairs are neighbours (2i, 2i + 1), as in GPT-J; False: (i, i + pairs), as in GPT-NeoX and Llama.
        kv_layout: `"HND"` or `"NHD"`.

    Returns:
        Shape and dtype of `keys`, contiguous. `torch.ops.vtkernels.rotate_keys.out` may be given the keys themselves.

    Angles are taken in float64, however far the move, the rotation in float32, rounded once. Backends differ by the
    last bit. A pair whose angle is zero keeps its bytes. For deltas of each head, make heads rows of the batch. The
    gradient is the rotation back.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: shapes or devices that do not fit, an unknown layout.
        RuntimeError: the same from the native backends.

    Source:
        RoPE: Su et al., arXiv 2104.09864. M-RoPE: Qwen2-VL, arXiv 2409.12191.

    Example:
        >>> inv_freq = 10000.0 ** -(torch.arange(0, 64, 2) / 64)
        >>> keys, kept = torch.randn(1, 8, 576, 64), torch.arange(0, 576, 4)[None]
        >>> (keys,) = vtkernels.gather_kv([keys], kept)
        >>> vtkernels.rotate_keys(keys, torch.arange(144) - kept, inv_freq).shape
        torch.Size([1, 8, 144, 64])
    """
    not_nested("rotate_keys", keys=keys, deltas=deltas, inv_freq=inv_freq)
    options = {"interleaved": interleaved, "kv_layout": kv_layout}
    if torch.is_grad_enabled() and isinstance(keys, Tensor) and keys.requires_grad:
        return _Rotate.apply(keys, deltas, inv_freq, options)
    return _op(keys, deltas, inv_freq, **options)


def mrope_inv_freq(inv_freq: Tensor, sections: Sequence[int], *, interleaved_sections: bool = False) -> Tensor:
    """The `[axes, pairs]` frequencies of M-RoPE: each pair turns with one axis of the position (time, height, width).

    Args:
        inv_freq: `[pairs]` float32 of the rotary embedding.
        sections: pairs of each axis, the model's `mrope_section`; their sum is `pairs`.
        interleaved_sections: the axes take turns (Qwen3-VL) until one has all its pairs, and the first axis takes the
            rest; False: one section after the other (Qwen2-VL, Qwen2.5-VL).

    Returns:
        `[axes, pairs]` float32, zeros where a pair does not turn with an axis.

    Example:
        >>> vtkernels.mrope_inv_freq(torch.tensor([1.0, 0.5, 0.25, 0.125]), [2, 1, 1])
        tensor([[1.0000, 0.5000, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.2500, 0.0000],
                [0.0000, 0.0000, 0.0000, 0.1250]])
    """
    pairs, axes = inv_freq.shape[-1], len(sections)
    if inv_freq.dim() != 1 or sum(sections) != pairs or min(sections) < 0:
        fail(ValueError, "mrope_inv_freq", "sections", f"{list(sections)} for inv_freq of shape "
             f"{tuple(inv_freq.shape)}", "a count for each axis, which add up to the pairs of a 1-D inv_freq")
    axis = torch.repeat_interleave(torch.arange(axes), torch.tensor(sections))
    if interleaved_sections:
        axis.zero_()
        for a in range(1, axes):
            axis[a:axes * sections[a]:axes] = a
    return torch.where(axis.to(inv_freq.device) == torch.arange(axes, device=inv_freq.device)[:, None], inv_freq, 0.0)
