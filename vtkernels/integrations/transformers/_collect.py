"""Queries and keys of single layers, seen by an attention function that passes everything on.

FlashAttention, SDPA and flex attention return no probabilities. A registered attention function sees what they see,
and `attention_scores` makes of it what a method needs.
"""

import sys
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PREFIX = "vtkernels_"
Collector = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], None]


class Collected(Exception):
    """Raised by a collector that needs no more than the queries and keys."""


_COLLECTORS: weakref.WeakKeyDictionary[Any, Collector] = weakref.WeakKeyDictionary()


def register(base: str) -> str:
    """The name of an attention implementation that does what `base` does and lets collectors look on."""
    name = PREFIX + base
    if name not in ALL_ATTENTION_FUNCTIONS:

        def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
            collector = _COLLECTORS.get(module)
            if collector is not None:
                collector(query, key, value, kwargs)
            eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
            return ALL_ATTENTION_FUNCTIONS.get_interface(base, eager)(module, query, key, value, attention_mask,
                                                                      **kwargs)

        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


class Collecting:
    """Attention modules of one model under observation, until `close`."""

    def __init__(self, owner: Any, modules: dict[Any, Collector]) -> None:
        self.owner, self.base = owner, owner.config._attn_implementation
        if self.base.startswith(PREFIX):  # another handle looks on already
            self.base = None
        else:
            owner.set_attn_implementation(register(self.base))
        self.modules = modules
        for module, collector in modules.items():
            if module in _COLLECTORS:
                raise ValueError("apply: `model` has a method that looks at the same layer, allowed: remove that first")
            _COLLECTORS[module] = collector

    def close(self) -> None:
        for module in self.modules:
            _COLLECTORS.pop(module, None)
        if self.base is not None:
            self.owner.set_attn_implementation(self.base)
