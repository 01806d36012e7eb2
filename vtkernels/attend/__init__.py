"""Attention patterns for `torch.nn.attention.flex_attention`: masks and biases of visual tokens."""

from . import patterns

__all__ = ["patterns"]
