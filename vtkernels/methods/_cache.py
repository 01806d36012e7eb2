"""What the methods that compact a KV cache share."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..compact.gather_kv import gather_kv
from ..select.select_topk import select_topk
from ._inputs import Attention, Result

POOLING = ("mean", "max")


def cache_of(name: str, layer: Attention, rows: int = 1) -> tuple[Tensor, Tensor]:
    """K and V of the layer, whose query must hold so many rows."""
    if layer.value is None:
        raise ValueError(f"{name}: `inputs.decoder[-1].value` is missing, allowed: [B, Hkv, S, dv]")
    held = layer.query.shape[2]
    if held < rows:
        raise ValueError(f"{name}: `inputs.decoder[-1].query` has {held} rows, allowed: at least {rows}")
    return layer.key, layer.value


def of_kv_heads(scores: Tensor, kv_heads: int) -> Tensor:
    """`[B, Hq, n]` as the mean over the query heads of each key head, `[B, Hkv, n]`."""
    first, *others = scores.unflatten(1, (kv_heads, -1)).unbind(2)
    for other in others:
        first = first + other
    return first / (1 + len(others))


def window_scores(layer: Attention, window: int) -> Tensor:
    """`[B, Hkv, S - window]`: the attention of the last `window` rows to each key before them, summed over these rows,
    mean over the query heads of a key head."""
    asking = replace(layer.last_rows(window), start=0, causal=True)
    scores = asking.scores(layer.key.shape[2] - window, reduce_rows="sum", reduce_heads="none")
    return of_kv_heads(scores, layer.key.shape[1])


def smooth(scores: Tensor, kernel: int, pooling: str) -> Tensor:
    """`[B, H, n]` pooled over `kernel` (odd) neighbours along n; a mean counts zeros beyond the ends."""
    pool = F.avg_pool1d if pooling == "mean" else F.max_pool1d
    return pool(scores, kernel, stride=1, padding=kernel // 2) if kernel > 1 else scores


def check_pooling(name: str, kernel: int, pooling: str) -> None:
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"{name}: `kernel` is {kernel}, allowed: an odd number from 1")
    if pooling not in POOLING:
        raise ValueError(f"{name}: `pooling` is {pooling!r}, allowed: {', '.join(map(repr, POOLING))}")


def evict(layer: Attention, scores: Tensor, protected: Tensor, count: int) -> Result:
    """The caches with the `count` best keys of each head by `scores` `[B, Hkv, S]`, `protected` `[S]` before all."""
    batch, heads, keys = scores.shape
    assert layer.value is not None
    forced = protected.expand(batch * heads, keys)
    indices = select_topk(scores.flatten(0, 1), count, protected=forced).unflatten(0, (batch, heads))
    return Result(indices=indices, kv=tuple(gather_kv([layer.key, layer.value], indices)))


def with_window(scores: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """Scores of the keys before the window, padded to all `keys`, and the mask `[S]` of those in the window."""
    window = torch.arange(keys, device=scores.device) >= scores.shape[-1]
    return F.pad(scores, (0, keys - scores.shape[-1])), window
