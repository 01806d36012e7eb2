"""Attention over visual tokens: patterns for `torch.nn.attention.flex_attention`, and what no library has."""

from . import patterns
from .em import em_attention

__all__ = ["em_attention", "patterns"]
