"""pool_span, shuffle_tokens, unshuffle_tokens: windows by their tokens' places, hostile samples."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .base import Sample, bytes_of, hostile_tokens, padded, rand

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def oracle_windows(n: int, window: int, window_width: int = 0, grid_width: int = 0, span_start: int = 0,
                   span_len: int = -1) -> list[list[int]]:
    """The tokens that each token of the output stands for, in order."""
    end = n if span_len < 0 else span_start + span_len
    columns, width = (grid_width, window_width or window) if grid_width else (1, 1)
    found: dict[tuple[int, int], list[int]] = {}
    for t in range(span_start, end):
        row, column = divmod(t - span_start, columns)
        found.setdefault((row // window, column // width), []).append(t)
    return [[t] for t in range(span_start)] + [found[key] for key in sorted(found)] + [[t] for t in range(end, n)]


def assert_pool_span(out: Tensor, tokens: Tensor, window: int, *, window_width: int = 0, grid_width: int = 0,
                     span_start: int = 0, span_len: int = -1, ceil: bool = False) -> None:
    """Means within the rounding of float32 and of the dtype; what is alone, byte for byte."""
    groups = oracle_windows(tokens.shape[1], window, window_width, grid_width, span_start, span_len)
    assert tuple(out.shape) == (tokens.shape[0], len(groups), tokens.shape[2])
    x, got = tokens.double().numpy(), out.double().numpy()
    info = torch.finfo(tokens.dtype)
    with np.errstate(all="ignore"):
        for j, group in enumerate(groups):
            if len(group) == 1:
                np.testing.assert_array_equal(bytes_of(out[:, j]), bytes_of(tokens[:, group[0]]))
                continue
            gold, size = x[:, group].mean(1), np.abs(x[:, group]).mean(1)
            held = size * len(group) < float(torch.finfo(torch.float32).max)
            allowed = 1e-6 * size * len(group) ** 0.5 + info.eps * np.abs(gold) + float(info.smallest_normal)
            error = np.abs(got[:, j] - gold)
            assert (error[held] <= allowed[held]).all(), f"the mean of {group} is off by {error[held].max():.3g}"
            lost = ~np.isfinite(gold)
            np.testing.assert_array_equal(got[:, j][lost], gold[lost])


def _grid_bytes(tokens: Tensor, factor: int, grid_width: int, order: str) -> tuple[np.ndarray, np.ndarray]:
    """For tokens of the fine grid: [tokens of the coarse grid, channels] token and channel that stand there."""
    rows, channels = tokens.shape[1] // grid_width, tokens.shape[2]
    coarse_rows, coarse_columns = rows // factor, grid_width // factor
    token = np.zeros((coarse_rows * coarse_columns, channels * factor**2), np.int64)
    channel = np.zeros_like(token)
    for t in range(tokens.shape[1]):
        (row, y), (column, x) = divmod(t // grid_width, factor), divmod(t % grid_width, factor)
        place = column * coarse_rows + row if order == "window_transposed" else row * coarse_columns + column
        for c in range(channels):
            at = (c * factor + y) * factor + x if order == "channel" else (y * factor + x) * channels + c
            token[place, at], channel[place, at] = t, c
    return token, channel


def assert_shuffle_tokens(out: Tensor, tokens: Tensor, grid_width: int, factor: int = 2, *,
                          order: str = "window") -> None:
    token, channel = _grid_bytes(tokens, factor, grid_width, order)
    assert tuple(out.shape) == (tokens.shape[0], *token.shape)
    np.testing.assert_array_equal(bytes_of(out), bytes_of(tokens)[:, token, channel])


def assert_unshuffle_tokens(out: Tensor, tokens: Tensor, grid_width: int, factor: int = 2, *,
                            order: str = "window") -> None:
    assert tuple(out.shape) == (tokens.shape[0], tokens.shape[1] * factor**2, tokens.shape[2] // factor**2)
    token, channel = _grid_bytes(out, factor, grid_width, order)
    np.testing.assert_array_equal(bytes_of(out)[:, token, channel], bytes_of(tokens))


def pool_samples(dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        tokens = rand(2, 37, 20, dtype=dtype)
        yield Sample(f"{tag}-sequence", (tokens, 8), {"span_start": 3, "span_len": 32})
        yield Sample(f"{tag}-grid", (tokens, 2), {"grid_width": 6, "span_start": 1})
        yield Sample(f"{tag}-oblong-ceil", (tokens, 3), {"window_width": 2, "grid_width": 7, "span_start": 1,
                                                         "span_len": 35, "ceil": True})
        hostile = hostile_tokens(14, 8, dtype)[None]
        yield Sample(f"{tag}-hostile", (hostile, 4), {"span_start": 1, "ceil": True})
        yield Sample(f"{tag}-hostile-grid", (hostile, 2), {"grid_width": 6, "span_start": 2})
        yield Sample(f"{tag}-strided", (rand(4, 40, 50, dtype=dtype)[::2, 1:38, 1:34:2], 5), {"ceil": True})
        yield Sample(f"{tag}-offset", (padded(tokens, 3), 4), {"span_len": 36})
    yield Sample("transposed-expanded", (rand(1, 7, 12).mT.expand(3, 12, 7), 3), {"window_width": 2, "grid_width": 4})
    yield Sample("wide", (rand(1, 5, 2100), 2), {"span_start": 1})
    yield Sample("window-of-one", (rand(1, 5, 3), 1), {"window_width": 1, "grid_width": 5})
    yield Sample("window-beyond-the-span", (rand(1, 5, 3), 100), {"ceil": True})
    yield Sample("long-window", (rand(1, 300, 3), 300), {})
    yield Sample("empty-span", (rand(2, 5, 3), 4), {"span_start": 2, "span_len": 0})
    yield Sample("empty-grid", (rand(2, 5, 3), 4), {"span_len": 0, "grid_width": 8, "span_start": 5})
    yield Sample("no-tokens", (rand(2, 0, 3), 4), {})
    yield Sample("no-rows", (rand(0, 8, 3), 4), {})
    yield Sample("no-channels", (rand(2, 8, 0), 4), {})


def _bytes(t: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same shape in dtypes of 1, 2, 4, 8 and 16 bytes, with every bit in use."""
    raw = torch.randint(0, 256, (t.numel() * 16,), dtype=torch.uint8, generator=torch.Generator().manual_seed(8))
    for dtype in (torch.uint8, torch.bfloat16, torch.float32, torch.int64, torch.complex128):
        count = t.numel() * dtype.itemsize
        yield str(dtype).removeprefix("torch."), raw[:count].view(dtype).view(t.shape)


def shuffle_samples() -> Iterator[Sample]:
    for order in ("window", "window_transposed", "channel"):
        for tag, grid in _bytes(torch.empty(2, 24, 5)):
            yield Sample(f"{order}-{tag}", (grid, 6, 2), {"order": order})
        yield Sample(f"{order}-aligned-by-3", (rand(1, 54, 16), 9, 3), {"order": order})
        strided = rand(4, 50, 12, dtype=torch.float16)[::2, 1:49:2, 1:10:3]
        yield Sample(f"{order}-strided", (strided, 4), {"order": order})
    yield Sample("transposed-expanded", (rand(1, 7, 16).mT.expand(3, 16, 7), 4), {})
    yield Sample("offset", (padded(rand(2, 16, 8, dtype=torch.bfloat16), 3), 8, 2), {})
    yield Sample("wide", (rand(1, 4, 3000), 2), {"order": "channel"})
    yield Sample("factor-one", (rand(2, 6, 4), 3, 1), {"order": "channel"})
    yield Sample("one-window", (rand(1, 25, 3), 5, 5), {})
    for shape in ((0, 16, 3), (2, 0, 3), (2, 16, 0)):
        yield Sample(f"empty-{'x'.join(map(str, shape))}", (rand(*shape), 4), {})


def unshuffle_samples() -> Iterator[Sample]:
    for order in ("window", "window_transposed", "channel"):
        for tag, grid in _bytes(torch.empty(2, 6, 20)):
            yield Sample(f"{order}-{tag}", (grid, 6, 2), {"order": order})
        yield Sample(f"{order}-aligned-by-3", (rand(1, 6, 144), 9, 3), {"order": order})
        yield Sample(f"{order}-strided", (rand(4, 13, 26, dtype=torch.float16)[::2, 1::2, 1:25:2], 4), {"order": order})
    yield Sample("transposed-expanded", (rand(1, 12, 4).mT.expand(3, 4, 12), 4), {})
    yield Sample("offset", (padded(rand(2, 4, 32, dtype=torch.bfloat16), 3), 4), {})
    yield Sample("wide", (rand(1, 1, 12000), 2), {"order": "channel"})
    yield Sample("factor-one", (rand(2, 6, 4), 3, 1), {})
    for shape in ((0, 4, 12), (2, 0, 12), (2, 4, 0)):
        yield Sample(f"empty-{'x'.join(map(str, shape))}", (rand(*shape), 4), {})
