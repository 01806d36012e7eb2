"""A LLaVA-shaped model: a small vision transformer, a projector and a causal decoder with rotary positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import COLOURS, DIGITS, TOKENS, WORDS

WIDTH, HEADS, VISION_LAYERS, DECODER_LAYERS = 64, 4, 3, 4
HEAD = WIDTH // HEADS


@dataclass(frozen=True)
class States:
    """Queries, keys and values of one layer, each `[B, HEADS, S, HEAD]`, rotary positions applied."""

    query: Tensor
    key: Tensor
    value: Tensor


class Block(nn.Module):
    """A transformer layer with its norms before attention and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def states(self, x: Tensor, positions: Tensor | None) -> States:
        """Of `x` `[B, S, WIDTH]` at `positions` `[B, S]`, or without rotary positions."""
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, HEADS, HEAD)).permute(2, 0, 3, 1, 4)
        return States(q, k, v) if positions is None else States(rotate(q, positions), rotate(k, positions), v)

    def finish(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """What the layer makes of `x`, given its states; `mask` is a bool or a bias for the attention."""
        mixed = F.scaled_dot_product_attention(query, key, value, mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


def blocks(count: int) -> Sequence[Block]:
    return cast(Sequence[Block], nn.ModuleList(Block() for _ in range(count)))


def inverse_frequencies() -> Tensor:
    """`[HEAD / 2]` radians per position of each pair."""
    return 10000.0 ** (-torch.arange(0, HEAD, 2) / HEAD)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions `[B, S]` on `[B, HEADS, S, HEAD]`, pairs (i, i + HEAD / 2)."""
    angles = (positions[..., None] * inverse_frequencies())[:, None]
    cos, sin = angles.cos(), angles.sin()
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Tower(nn.Module):
    """A vision transformer with a class token, over convolutions that end in one token per patch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1), nn.GroupNorm(1, 24), nn.GELU(), nn.Conv2d(24, 48, 3, 2, 1), nn.GroupNorm(1, 48),
            nn.GELU(), nn.Conv2d(48, WIDTH, 3, 2, 1), nn.GroupNorm(1, WIDTH))
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.places = nn.Parameter(torch.randn(1, TOKENS + 1, WIDTH) * 0.02)
        self.blocks = blocks(VISION_LAYERS)
        self.norm = nn.LayerNorm(WIDTH)

    def embed(self, pixels: Tensor) -> Tensor:
        """`[B, 1 + TOKENS, WIDTH]`, the class token first."""
        patches = self.stem(pixels - 0.5).flatten(2).mT
        return torch.cat([self.class_token.expand(len(patches), -1, -1), patches], 1) + self.places

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        for block in self.blocks:
            s = block.states(x, None)
            x = block.finish(x, s.query, s.key, s.value, None)
        return self.norm(x)


class Model(nn.Module):
    """Tower, projector and decoder. `WORDS` is the vocabulary; the image stands after `<bos>`."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Tower()
        self.projector = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.words = nn.Embedding(len(WORDS), WIDTH)
        self.blocks = blocks(DECODER_LAYERS)
        self.norm = nn.LayerNorm(WIDTH)
        # What the tower alone is asked: the digit on each patch and the colour of its frame; which digits there are.
        self.digit_head, self.colour_head = nn.Linear(WIDTH, 1 + len(DIGITS)), nn.Linear(WIDTH, 1 + len(COLOURS))
        self.image_head = nn.Linear(WIDTH, len(DIGITS))
        nn.init.normal_(self.words.weight, std=0.5)

    def decode(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Logits `[B, S, words]` of embeddings `[B, S, WIDTH]`."""
        for block in self.blocks:
            s = block.states(x, positions)
            x = block.finish(x, s.query, s.key, s.value, mask)
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        return self.norm(x) @ self.words.weight.T
