"""The model with visual tokens dropped: within the tower, before the decoder, between its layers or in its caches."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vtkernels.methods import Attention, Inputs, Method, Result

from .data import GRID, ID, TOKENS
from .model import HEAD, HEADS, Model, States

POLICIES = ("preserve", "pack")
BYTES_PER_KEY = 2 * HEADS * HEAD * 4  # K and V of one layer, float32


@dataclass(frozen=True)
class Visual:
    """Visual tokens on their way to the decoder.

    Args:
        hidden: `[B, K, WIDTH]`. places: `[B, K]` position ids, 1 for the first; None where a method gives none.
        counts: `[B]` rows in use; None for all.
    """

    hidden: Tensor
    places: Tensor | None
    counts: Tensor | None = None

    def repeat(self, times: int) -> "Visual":
        """The images one after the other, so many times."""
        return Visual(*(None if t is None else torch.cat([t] * times) for t in
                        (self.hidden, self.places, self.counts)))  # type: ignore[arg-type]


@dataclass
class Cache:
    """Keys and values `[B, HEADS, S, HEAD]` of one layer; valid `[B, S]` or None for all; next position `[B]`."""

    key: Tensor
    value: Tensor
    valid: Tensor | None
    position: Tensor

    def keys_per_prompt(self) -> float:
        return self.key.shape[2] if self.valid is None else self.valid.sum(1).float().mean().item()


@dataclass(frozen=True)
class Seen:
    """What the tower made of pictures: its layers, CLS first among the keys, and its output without CLS."""

    layers: tuple[States, ...]
    features: Tensor

    def attention(self, all_rows: bool = False) -> tuple[Attention, ...]:
        """Of each layer: the CLS row looks at CLS and patches; or every patch at the patches."""
        if all_rows:
            return tuple(Attention(s.query[:, :, 1:], s.key[:, :, 1:], s.value[:, :, 1:]) for s in self.layers)
        return tuple(Attention(s.query[:, :, :1], s.key, s.value, start=1) for s in self.layers)


def all_places(batch: int) -> Tensor:
    return torch.arange(1, TOKENS + 1).repeat(batch, 1)


def look(model: Model, pixels: Tensor) -> Seen:
    x, layers = model.tower.embed(pixels), []
    for block in model.tower.blocks:
        states = block.states(x, None)
        x = block.finish(x, states.query, states.key, states.value, None)
        layers.append(states)
    return Seen(tuple(layers), model.tower.norm(x)[:, 1:])


def visual_of(kept: Result) -> Visual:
    assert kept.hidden is not None
    return Visual(kept.hidden, kept.positions, kept.counts)


def look_and_drop(model: Model, pixels: Tensor, method: Method, layers: tuple[int, ...]) -> Visual:
    """The tower with a method after each of `layers`. Tokens of several weigh `log(size)` more in its attention."""
    x = model.tower.embed(pixels)
    places, stage = all_places(len(x)), 0
    sizes: Tensor | None = None
    seen: list[Attention] = []
    for i, block in enumerate(model.tower.blocks, 1):
        s = block.states(x, None)
        bias = None if sizes is None else torch.nn.functional.pad(sizes, (1, 0), value=1.0).log()[:, None, None]
        x = block.finish(x, s.query, s.key, s.value, bias)
        seen.append(Attention(s.query[:, :, :1], s.key, s.value, start=1))
        if i in layers:
            grid = (1, GRID, GRID) if x.shape[1] == 1 + TOKENS else None
            inputs = Inputs(x[:, 1:], grid, places, tuple(seen), sizes=sizes, original=TOKENS)
            kept = method(inputs, stage=stage if method.stages else 0)
            assert kept.hidden is not None
            assert kept.positions is not None
            x, places, sizes = torch.cat([x[:, :1], kept.hidden], 1), kept.positions, kept.sizes
            seen, stage = [], stage + 1
    return Visual(model.projector(model.tower.norm(x)[:, 1:]), places)


def drop_before(model: Model, seen: Seen, method: Method, *, text: Tensor | None = None,
                scores: Tensor | None = None, all_rows: bool = False, within: bool = False) -> Visual:
    """The tokens of `seen` that a method passes on to the decoder. It sees them projected, or as the tower gives them
    (`within`)."""
    hidden = seen.features if within else model.projector(seen.features)
    kept = visual_of(method(Inputs(hidden, (1, GRID, GRID), all_places(len(hidden)), seen.attention(all_rows),
                                   text=text, scores=scores)))
    return replace(kept, hidden=model.projector(kept.hidden)) if within else kept


def prefill(model: Model, visual: Visual, words: Tensor, policy: str, inner: Method | None = None
            ) -> tuple[Tensor, list[Cache], list[tuple[Tensor, States]]]:
    """Run the prompt `<bos>`, image, `words` `[B, T]` (of which there may be none).

    Returns:
        logits after the last word `[B, words]`; the caches of the layers; what each layer read and its states.
    """
    batch, n = visual.hidden.shape[:2]
    embedded = model.words(words)
    x = torch.cat([model.words.weight[ID["<bos>"]].expand(batch, 1, -1), visual.hidden, embedded], 1)
    positions, following, valid = _layout(visual, words.shape[1], policy)
    stages = [] if inner is None else [stage.layer for stage in inner.stages] or [1]
    raters = None
    if inner is not None and hasattr(inner, "raters"):
        raters = inner.raters(Inputs(visual.hidden, text=embedded))
    caches: list[Cache] = []
    layers: list[tuple[Tensor, States]] = []
    for i, block in enumerate(model.blocks):
        if inner is not None and i in stages:
            nexts = block.states(x, positions) if inner.decoder_layer == "next" else None
            history = [s for _, s in layers] if nexts is None else [nexts]
            inputs = Inputs(x[:, 1:1 + n], (1, GRID, GRID) if n == TOKENS else None, positions[:, 1:1 + n],
                            text=x[:, 1 + n:], original=TOKENS, decoder=tuple(_asked(s, n, raters) for s in history))
            kept = inner(inputs, stage=stages.index(i) if inner.stages else 0)
            assert kept.hidden is not None
            assert kept.positions is not None
            x = torch.cat([x[:, :1], kept.hidden, x[:, 1 + n:]], 1)
            n = kept.hidden.shape[1]
            positions = torch.cat([positions[:, :1], kept.positions, positions[:, -words.shape[1]:]], 1)
            if policy == "pack":
                positions, following = torch.arange(x.shape[1]).expand(batch, -1), torch.full((batch,), x.shape[1])
        states = block.states(x, positions)
        caches.append(Cache(states.key, states.value, valid, following))
        layers.append((x, states))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        x = block.finish(x, states.query, states.key, states.value,
                         mask if valid is None else mask & valid[:, None, None])
    return model.logits(x[:, -1]), caches, layers


def _layout(visual: Visual, words: int, policy: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Positions `[B, S]` of a prompt, the next one `[B]`, and which rows are in use, None for all."""
    batch, n = visual.hidden.shape[:2]
    counts = torch.full((batch,), n) if visual.counts is None else visual.counts.long()
    places = torch.arange(1, n + 1).expand(batch, -1) if policy == "pack" else visual.places
    if places is None:
        raise ValueError("retention: `policy` is 'preserve', allowed: 'pack' (the method gives no positions)")
    after = counts if policy == "pack" else torch.full((batch,), TOKENS)
    text = 1 + after[:, None] + torch.arange(words)
    positions = torch.cat([torch.zeros(batch, 1, dtype=torch.int64), places, text], 1)
    following = 1 + after + words
    if visual.counts is None:
        return positions, following, None
    valid = torch.ones_like(positions, dtype=torch.bool)
    valid[:, 1:1 + n] = torch.arange(n) < counts[:, None]
    return positions, following, valid


def _asked(states: States, n: int, raters: Tensor | None) -> Attention:
    """What the words after the image look at."""
    return Attention(states.query[:, :, 1 + n:], states.key, states.value, row_weights=raters, start=1, causal=True)


def compress(method: Method, caches: list[Cache], layers: list[tuple[Tensor, States]]) -> list[Cache]:
    """The caches of a whole prompt, each compressed by a method that looks at the queries of its layer's words."""
    out = []
    for cache, (hidden, states) in zip(caches, layers, strict=True):
        attention = replace(_asked(states, TOKENS, None), start=0)  # of the whole sequence, not of the image alone
        kept = method(Inputs(hidden, decoder=(attention,), spans=((1, TOKENS),)))
        key, value = kept.kv
        valid = None if kept.counts is None else torch.arange(key.shape[2]) < kept.counts[:, None]
        out.append(Cache(key, value, valid, cache.position))
    return out


def step(model: Model, words: Tensor, caches: list[Cache]) -> Tensor:
    """Further words `[B, T]` into all caches; logits after the last one, `[B, words]`."""
    x, count = model.words(words), words.shape[1]
    for block, cache in zip(model.blocks, caches, strict=True):
        states = block.states(x, cache.position[:, None] + torch.arange(count))
        seen = torch.ones(count, cache.key.shape[2] + count, dtype=torch.bool).tril(cache.key.shape[2])
        cache.key = torch.cat([cache.key, states.key], 2)
        cache.value = torch.cat([cache.value, states.value], 2)
        if cache.valid is not None:
            cache.valid = torch.nn.functional.pad(cache.valid, (0, count), value=True)
            seen = seen & cache.valid[:, None, None]
        x = block.finish(x, states.query, cache.key, cache.value, seen)
        cache.position = cache.position + count
    return model.logits(x[:, -1])


def rows(caches: list[Cache], chosen: Tensor) -> list[Cache]:
    """The rows at `chosen` of each cache."""
    return [Cache(c.key[chosen], c.value[chosen], None if c.valid is None else c.valid[chosen], c.position[chosen])
            for c in caches]
