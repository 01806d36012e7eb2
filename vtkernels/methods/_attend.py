"""Attention over a published pattern, as the methods of the family "attention" compute it."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ..attend.patterns import MaskMod, ScoreMod
from ._inputs import Attention


def attend(layer: Attention, mask_mod: MaskMod | None = None, score_mod: ScoreMod | None = None) -> Tensor:
    """`[B, Hq, Tq, dv]`: the attention of the layer's rows, which are the last of the sequence, over the pattern.

    Compiled by torch.compile it is `flex_attention`, which skips what the mask hides. Eager, where `flex_attention`
    stores all scores, it is `scaled_dot_product_attention` over the mask written out. `score_mod` must only add.
    """
    query, key, value = layer.query, layer.key, layer.value
    assert value is not None
    (batch, heads, rows), keys = query.shape[:3], key.shape[2]
    grouped = heads != key.shape[1]
    if torch.compiler.is_compiling():
        shift = keys - rows
        seen = mask_mod and (lambda b, h, q, k: mask_mod(b, h, q + shift, k))
        bias = score_mod and (lambda s, b, h, q, k: score_mod(s, b, h, q + shift, k))
        block = create_block_mask(seen, batch, None, rows, keys, query.device) if seen else None
        return flex_attention(query, key, value, bias, block, layer.scale, grouped)
    place = [torch.arange(n, device=query.device) for n in (batch, heads, keys, keys)]
    b, h, q, k = place[0][:, None, None, None], place[1][:, None, None], place[2][keys - rows:, None], place[3]
    mask = None if mask_mod is None else mask_mod(b, h, q, k)
    if score_mod is not None:
        added = score_mod(torch.zeros((), device=query.device), b, h, q, k).to(query.dtype)
        mask = added if mask is None else added.masked_fill(~mask, -torch.inf)
    return F.scaled_dot_product_attention(query, key, value, mask, scale=layer.scale, enable_gqa=grouped)


def joined(out: Tensor) -> Tensor:
    """`[B, H, T, d]` as `[B, T, H * d]`, the heads side by side."""
    return out.transpose(1, 2).flatten(2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` of `[B, T, D]`, a call for each row of the batch: how a library cuts one product of
    all rows into blocks, and with it the bits of a row, varies with B, and so does `bmm`."""
    return torch.stack([torch.nn.functional.linear(row, weight, bias) for row in x])


def needs_value(name: str, field: str, layer: Attention) -> Attention:
    """The layer, or an error that says what it lacks."""
    if layer.value is None:
        raise ValueError(f"{name}: `inputs.{field}[-1].value` is missing, allowed: [B, Hkv, S, dv]")
    return layer


def needs_all_rows(name: str, field: str, layer: Attention, tokens: int | None = None) -> Attention:
    """The same, and `query` must hold every row of the sequence, `tokens` of them where that is given."""
    rows, keys = layer.query.shape[2], layer.key.shape[2]
    if rows != keys or tokens not in (None, rows):
        raise ValueError(f"{name}: `inputs.{field}[-1]` has {rows} rows of {keys} keys, allowed: "
                         f"{keys if tokens is None else tokens} of both (the whole sequence asks)")
    return needs_value(name, field, layer)
