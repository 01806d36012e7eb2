"""Caches made smaller after the prefill."""

from typing import Any

from torch import Tensor

from ... import methods
from ...compact.gather_kv import gather_kv
from ._prompt import Prompt
from ._select import Seen


def check_cache(cache: Any) -> None:
    """Only layers that keep one key and one value per token, in order, can be compacted."""
    from transformers.cache_utils import DynamicLayer, StaticLayer

    for i, layer in enumerate(cache.layers):
        if type(layer) not in (DynamicLayer, StaticLayer):
            raise ValueError(f"compact_cache: `cache` has a {type(layer).__name__} at layer {i}, allowed: DynamicLayer "
                             "and StaticLayer (sliding, quantised and linear-attention layers keep other states)")


def compact_cache(cache: Any, indices: Tensor) -> None:
    """Keep the tokens at `indices` of every layer of a transformers cache, in place.

    Args:
        cache: a DynamicCache or StaticCache. A dynamic one gets new, smaller tensors; a static one keeps its memory and
            its address, the kept tokens moved to the front.
        indices: `[B, K]`, or `[B, Hkv, K]` for a choice of each head, int32 or int64, ascending.

    Positions are not stored in a cache: decode with explicit `position_ids`, or let `apply` do it.

    Raises:
        ValueError: a cache with sliding, quantised or linear-attention layers, or indices of another batch.

    Example:
        >>> from transformers import DynamicCache
        >>> cache = DynamicCache()
        >>> _ = cache.update(torch.randn(1, 2, 8, 4), torch.randn(1, 2, 8, 4), 0)
        >>> compact_cache(cache, torch.tensor([[0, 3, 7]]))
        >>> cache.get_seq_length()
        3
    """
    check_cache(cache)
    for layer in cache.layers:
        length = int(layer.get_seq_length())
        _install(layer, *gather_kv([layer.keys[:, :, :length], layer.values[:, :, :length]], indices))


def _install(layer: Any, keys: Tensor, values: Tensor) -> None:
    if not layer.is_compileable:
        layer.keys, layer.values = keys, values
        return
    kept = keys.shape[2]
    layer.keys[:, :, :kept], layer.values[:, :, :kept] = keys, values
    layer.keys[:, :, kept:], layer.values[:, :, kept:] = 0, 0
    layer.cumulative_length.fill_(kept)


def compact_layers(cache: Any, method: methods.Method, seen: dict[int, Seen], states: dict[int, Tensor],
                   prompt: Prompt) -> list[int]:
    """A cache method on every layer; the tokens that each one holds afterwards."""
    check_cache(cache)
    spans = [(run.start, run.length) for run in prompt.runs[0]]
    lengths = []
    for i, layer in enumerate(cache.layers):
        layer_seen = seen[i]
        attention = methods.Attention(layer_seen.query, layer_seen.key, layer_seen.value, causal=True,
                                      scale=layer_seen.scale)
        result = method(methods.Inputs(hidden=states.get(i), decoder=(attention,), spans=tuple(spans)))
        if len(result.kv) != 2 or result.counts is not None or result.kv[0].shape[:2] != layer_seen.key.shape[:2]:
            raise ValueError(f"apply: `method` is {method.info.name!r}, whose caches are ragged or quantised, allowed: "
                             "methods that keep as many tokens in every row, at full precision")
        _install(layer, *result.kv)
        lengths.append(result.kv[0].shape[2])
    return lengths
