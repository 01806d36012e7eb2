"""What goes into every method and what comes out, so that one can be swapped for another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..score.attention_scores import attention_scores

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Attention:
    """The attention of one layer as far as a method needs it: which rows ask, and what they look at.

    Args:
        query: `[B, Hq, Tq, d]`: the rows that ask, such as the CLS row or the text rows. With `causal` they are the
            last of the sequence.
        key: `[B, Hkv, S, d]`, Hq a multiple of Hkv, rotary positions applied where the model has them.
        value: `[B, Hkv, S, dv]`, for methods that look at values or compact a cache.
        lse: `[B, Hq, Tq]` float32 from FlashAttention, which saves a pass.
        row_weights: `[B, Tq]` float32, 0 for rows that do not count, such as padding.
        start: position of the first visual token among the keys.
        causal: row i sees only keys up to `S - Tq + i`.
        scale: of the products, `1 / sqrt(d)` when absent.
    """

    query: Tensor
    key: Tensor
    value: Tensor | None = None
    lse: Tensor | None = None
    row_weights: Tensor | None = None
    start: int = 0
    causal: bool = False
    scale: float | None = None

    def last_rows(self, count: int = 1) -> "Attention":
        """The same with the last `count` rows of the query alone."""
        lse, weights = self.lse, self.row_weights
        return replace(self, query=self.query[:, :, -count:], lse=None if lse is None else lse[:, :, -count:],
                       row_weights=None if weights is None else weights[:, -count:])

    def scores(self, count: int, **reduce: Any) -> Tensor:
        """`attention_scores` of the `count` visual tokens, `[B, count]` float32. No attention matrix is stored."""
        return attention_scores(self.query, self.key, lse=self.lse, row_weights=self.row_weights, scale=self.scale,
                                causal=self.causal, key_start=self.start, key_len=count, **reduce)


@dataclass(frozen=True, eq=False)
class Inputs:
    """One batch of visual tokens, and what else a method may look at. Give what is at hand.

    All rows have the same number of tokens, N; `vtkernels.methods.batch` takes inputs of different lengths.

    Args:
        hidden: `[B, N, D]` visual tokens where the method acts.
        grid: (frames, rows, columns), their product N.
        positions: `[B, N]` or, for M-RoPE, `[B, N, 3]` position ids, compacted with the tokens.
        vision: layers of the vision encoder, first to last. `query` holds the CLS row, or every row without a CLS.
        decoder: layers of the language model, first to last. `query` holds the rows after the image (or all of the
            sequence), the last one of the prompt last.
        text: `[B, T, D]` text states, in the space of `hidden`.
        pixels: `[B, N, channels, height, width]` the pixels of each token's patch, 0 to 1.
        scores: `[B, N]` float32 importance from an earlier stage or a scorer of the user's own.
        sizes: `[B, N]` float32, how many tokens each one stands for, from earlier merges.
        segments: tokens of each image, crop or frame along N where `grid` does not say it; their sum is N.
        frame_scores: `[B, F]` float32, one relevance per frame.
        spans: (start, length) of each image among the keys of `decoder`, for caches.
        original: tokens before the first stage of a schedule, N when absent.
        text_segments: tokens of `text` that belong to each segment, where each has its own; their sum is T.
        cache: `Result.kv` of an earlier call, for methods that carry state from step to step.
        allowed: `[B, Q, N]` bool, the tokens that each of Q queries may look at.
    """

    hidden: Tensor | None = None
    grid: tuple[int, int, int] | None = None
    positions: Tensor | None = None
    vision: tuple[Attention, ...] = ()
    decoder: tuple[Attention, ...] = ()
    text: Tensor | None = None
    pixels: Tensor | None = None
    scores: Tensor | None = None
    sizes: Tensor | None = None
    segments: tuple[int, ...] = ()
    frame_scores: Tensor | None = None
    spans: tuple[tuple[int, int], ...] = ()
    original: int | None = None
    text_segments: tuple[int, ...] = ()
    cache: tuple[Tensor, ...] = ()
    allowed: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        assert self.hidden is not None
        return self.hidden

    @property
    def frames(self) -> tuple[int, ...]:
        """Tokens of each segment: `segments`, else the frames of `grid`, else all in one."""
        if self.segments:
            return self.segments
        if self.grid:
            return (self.grid[1] * self.grid[2],) * self.grid[0]
        return (self.tokens.shape[1],)


@dataclass(frozen=True, eq=False)
class Result:
    """What a method made of the tokens. Fields that a method does not have are None or empty.

    Args:
        hidden: `[B, K, D]`: the tokens that go on, in order. Rows past `counts` are zero.
        indices: `[B, K]` int64, ascending: where each token of `hidden` stood (of a merged token, the place it keeps).
            -1 past `counts`. Caches: `[B, H, K]`.
        counts: `[B]` int32 on the device, the rows of `hidden` in use; None: all K.
        assignment: `[B, N]` int64: the row of `hidden` that each input token went into, -1 for a dropped one. Codewords
            and experts: `[B, N]` or, with several parts or choices, `[B, N, m]`.
        sizes: `[B, K]` float32: how many tokens each one stands for.
        positions: those of the kept tokens, `[B, K]` or `[B, K, 3]`.
        scores: `[B, N]` float32, what the selection looked at.
        kv: the compacted caches.
        mask_mod, score_mod: for `torch.nn.attention.flex_attention`.
    """

    hidden: Tensor | None = None
    indices: Tensor | None = None
    counts: Tensor | None = None
    assignment: Tensor | None = None
    sizes: Tensor | None = None
    positions: Tensor | None = None
    scores: Tensor | None = None
    kv: tuple[Tensor, ...] = ()
    mask_mod: Callable | None = None
    score_mod: Callable | None = None

    @property
    def cu_seqlens(self) -> Tensor:
        """`[B + 1]` int32 on the device: the sums of the counts before each row, as packed attention wants them."""
        rows = self.hidden if self.hidden is not None else self.indices
        assert rows is not None
        counts = self.counts
        if counts is None:
            counts = torch.full((rows.shape[0],), rows.shape[1], dtype=torch.int32, device=rows.device)
        return torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))

    def rows(self) -> list[Tensor]:
        """The tokens of each row without fill. Waits for the device when the counts are ragged."""
        assert self.hidden is not None
        if self.counts is None:
            return list(self.hidden)
        return [row[:n] for row, n in zip(self.hidden, self.counts.tolist(), strict=True)]


class Stage(NamedTuple):
    """Where a schedule acts: after how many decoder layers, and what it keeps of the original tokens."""

    layer: int
    keep: float | int  # a share up to 1.0, or a number of tokens


def map_tensors(value: T, function: Callable[[Tensor], Any]) -> T:
    """`value` (Inputs, Result, ..) with `function` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(v, function) for v in value)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        kwargs = {f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)}
        return type(value)(**kwargs)
    return value


def signature(value: Any) -> Any:
    """Equal for inputs that can stand in one batch: everything but the batch size."""
    if isinstance(value, Tensor):
        return tuple(value.shape[1:]), value.dtype, value.device
    if isinstance(value, tuple):
        return tuple(map(signature, value))
    if is_dataclass(value) and not isinstance(value, type):
        return tuple(signature(getattr(value, f.name)) for f in fields(value))
    return value


def concatenate(values: Sequence[T]) -> T:
    """Inputs of equal `signature` as one batch."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(values)  # type: ignore[arg-type, return-value]
    if isinstance(first, tuple):
        return tuple(map(concatenate, zip(*values, strict=True)))  # type: ignore[return-value, arg-type, call-overload]
    if is_dataclass(first) and not isinstance(first, type):
        kwargs = {f.name: concatenate([getattr(v, f.name) for v in values]) for f in fields(first)}
        return type(first)(**kwargs)
    return first
