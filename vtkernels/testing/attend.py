"""cell_attention and argmax_attention: float64 softmax per cell, replay of each choice, hostile samples."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .base import Sample, bytes_of, hostile_tokens, rand

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def assert_cell_attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, grid_width: int, cell: int, *,
                          scale: float | None = None) -> None:
    """Within the rounding of float32 and of the dtype, by the size of the terms."""
    q, k, v = (t.detach().double().numpy() for t in (query, key, value))
    batch, heads, cells, d = q.shape
    columns = grid_width // cell
    factor = d ** -0.5 if scale is None else scale
    eps = float(torch.finfo(out.dtype).eps)
    subnormal = eps * float(torch.finfo(out.dtype).smallest_normal)
    got = out.double().numpy()
    with np.errstate(all="ignore"):
        for b, h, c in np.ndindex(batch, heads, cells):
            row, column = divmod(c, columns)
            places = [(row * cell + i) * grid_width + column * cell + j for i in range(cell) for j in range(cell)]
            logits = k[b, h, places] @ q[b, h, c] * factor
            bound = np.abs(k[b, h, places]) @ np.abs(q[b, h, c]) * abs(factor)
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            gold = weights @ v[b, h, places]
            if not np.isfinite(gold).all() or not np.isfinite(bound).all() or bound.max() > 1e30:
                np.testing.assert_array_equal(np.isfinite(got[b, h, c]), np.isfinite(gold) & np.isfinite(got[b, h, c]))
                continue
            spread = np.abs(v[b, h, places]).max(0)
            allowed = (1e-6 * (2 + 4 * bound.max())) * spread + eps * np.abs(gold) + subnormal + 1e-30
            assert (np.abs(got[b, h, c] - gold) <= allowed).all(), (b, h, c)


def assert_argmax_attention(outputs: tuple[Tensor, Tensor], query: Tensor, key: Tensor, *,
                            allowed: Tensor | None = None) -> None:
    """Each choice attains the maximum within rounding, -1 where nothing is allowed; the chosen rows byte for byte."""
    out, indices = outputs
    q, k = query.detach().double().numpy(), key.detach().double().numpy()
    batch, heads, rows, _ = q.shape
    chosen = indices.numpy()
    least = float(torch.finfo(query.dtype).smallest_normal) if query.dtype == torch.bfloat16 else 0.0
    tiny_q, tiny_k = (np.where(np.abs(t) < least, np.abs(t), 0.0) for t in (q, k))  # which may count as zero
    with np.errstate(all="ignore"):
        for b, h, r in np.ndindex(batch, heads, rows):
            may = np.ones(k.shape[2], bool) if allowed is None else allowed[b, r].numpy()
            place = int(chosen[b, h, r])
            if not may.any():
                assert place == -1
                assert not bytes_of(out[b, h, r]).any()
                continue
            assert may[place]
            np.testing.assert_array_equal(bytes_of(out[b, h, r]), bytes_of(key[b, h, place]))
            products = k[b, h] @ q[b, h, r]
            bound = np.abs(k[b, h]) @ np.abs(q[b, h, r])
            sure = may & ~np.isnan(products)
            if not sure.any():
                assert place == int(np.flatnonzero(may)[0])
                continue
            if np.isfinite(products[sure]).all() and bound[sure].max() < 1e30:
                gap = products[sure].max() - products[place]
                lost = tiny_k[b, h] @ np.abs(q[b, h, r]) + np.abs(k[b, h]) @ tiny_q[b, h, r]
                # What is below the smallest normal float32 may count as zero.
                assert gap <= 4e-7 * len(q[b, h, r]) ** 0.5 * bound[sure].max() + 3e-38 * len(
                    q[b, h, r]) + 2 * lost[sure].max(), gap
            assert not np.isnan(products[place])


def cell_samples(dtypes: tuple[torch.dtype, ...] = FLOATS) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")

        def heads(b: int, h: int, n: int, d: int, seed: int, dtype: torch.dtype = dtype) -> Tensor:
            return rand(b, h, n, d, dtype=dtype, seed=seed)

        for s, rows, columns, d in ((1, 2, 3, 8), (2, 3, 2, 33), (3, 1, 2, 16)):
            cells = rows * columns
            yield Sample(f"{tag}-{rows}x{columns}-s{s}", (heads(2, 2, cells, d, 1), heads(2, 2, cells * s * s, d, 2),
                                                         heads(2, 2, cells * s * s, d, 3), columns * s, s), {})
        nhd = [rand(2, 16, 3, 20, dtype=dtype, seed=s).transpose(1, 2)[..., 1:18:2] for s in (2, 3)]
        yield Sample(f"{tag}-strided", (heads(2, 3, 4, 18, 1)[..., ::2], *nhd, 4, 2), {"scale": 0.7})
        hostile = hostile_tokens(16, 12, dtype)[None, None]
        yield Sample(f"{tag}-hostile", (heads(1, 1, 4, 12, 1), hostile, heads(1, 1, 16, 12, 3), 4, 2), {})
    yield Sample("no-cells", (rand(1, 2, 0, 4), rand(1, 2, 0, 4), rand(1, 2, 0, 4), 4, 2), {})
    yield Sample("no-rows", (rand(0, 2, 4, 4), rand(0, 2, 16, 4), rand(0, 2, 16, 4), 4, 2), {})
    yield Sample("one", (rand(1, 1, 1, 1), rand(1, 1, 1, 1), rand(1, 1, 1, 1), 1, 1), {})


def argmax_samples(dtypes: tuple[torch.dtype, ...] = FLOATS) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        query, key = rand(2, 2, 67, 24, dtype=dtype), rand(2, 2, 37, 24, dtype=dtype, seed=1)
        allowed = rand(2, 67, 37, seed=2) > 0.5
        allowed[0, 3] = False
        yield Sample(f"{tag}-all", (query, key), {})
        yield Sample(f"{tag}-mask", (query, key), {"allowed": allowed})
        yield Sample(f"{tag}-hostile", (query[:, :1], hostile_tokens(40, 24, dtype).expand(2, 1, 40, 24)),
                     {"allowed": (rand(1, 67, 40, seed=3) > 0.7).expand(2, 67, 40)})
        yield Sample(f"{tag}-strided", (rand(2, 9, 3, 50, dtype=dtype).transpose(1, 2)[..., 3:36],
                                        rand(2, 20, 3, 66, dtype=dtype).transpose(1, 2)[..., ::2]), {})
        yield Sample(f"{tag}-ties", (query, key[:, :, :1].expand(2, 2, 30, 24)), {})
    yield Sample("many-keys", (rand(1, 1, 3, 8), rand(1, 1, 2500, 8, seed=1)), {})
    yield Sample("all-nan", (rand(1, 1, 3, 8), torch.full((1, 1, 5, 8), torch.nan)), {})
    yield Sample("no-keys", (rand(1, 2, 3, 8), rand(1, 2, 0, 8)), {})
    yield Sample("no-queries", (rand(1, 2, 0, 8), rand(1, 2, 4, 8)), {})
