"""gather_tokens and gather_kv: moved rows byte by byte, hostile samples."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Sample, bytes_of, hostile_tokens, padded, rand


def oracle_rows(t: Tensor, indices: Any, batch_dim: int, token_dim: int) -> np.ndarray:
    """Bytes of the gathered tensor for indices [B, k], zeros for positions outside the row."""
    indices = np.asarray(indices)
    raw = np.moveaxis(bytes_of(t), (batch_dim, token_dim), (0, 1))
    count = indices.shape[1] if indices.ndim == 2 else 0
    out = np.zeros((raw.shape[0], count, *raw.shape[2:]), np.uint8)
    for b, row in enumerate(indices):
        for j, i in enumerate(row):
            if 0 <= i < raw.shape[1]:
                out[b, j] = raw[b, i]
    return np.moveaxis(out, (0, 1), (batch_dim, token_dim))


def assert_gather_tokens(outputs: Sequence[Tensor], tensors: Sequence[Tensor], indices: Tensor, *,
                         token_dims: Sequence[int] | None = None) -> None:
    """Every row byte for byte, zeros where a position is outside."""
    for t, out, dim in zip(tensors, outputs, token_dims or [1] * len(tensors), strict=True):
        np.testing.assert_array_equal(bytes_of(out), oracle_rows(t, indices.numpy(), dim - 1, dim))


def assert_gather_kv(outputs: Sequence[Tensor], kv: Sequence[Tensor], indices: Tensor, *,
                     kv_layout: str = "HND") -> None:
    for t, out in zip(kv, outputs, strict=True):
        np.testing.assert_array_equal(bytes_of(out),
                                      oracle_rows(t, indices.numpy(), 0, 2 if kv_layout == "HND" else 1))


def gather_tokens_samples() -> Iterator[Sample]:
    ids = torch.arange(20)
    idx = torch.tensor([[0, 3, 4, 19], [1, 2, 7, 11]])
    yield Sample("hidden", ([rand(2, 20, 33)], idx), {})
    yield Sample("aligned", ([rand(2, 20, 16, dtype=torch.bfloat16), ids.expand(2, 20), ids.expand(3, 2, 20),
                              rand(2, 20, 3, 5)], idx.int()), {"token_dims": [1, 1, 2, 1]})
    yield Sample("out-of-range", ([rand(2, 20, 8)], torch.tensor([[-1, 0, 20], [2**31, 5, -2**40]])), {})
    yield Sample("repeated-descending", ([rand(2, 20, 8)], torch.tensor([[5, 5, 0], [19, 2, 2]])), {})
    yield Sample("bool-bytes", ([rand(2, 20, 7) > 0, torch.arange(40, dtype=torch.uint8).view(2, 20)], idx), {})
    yield Sample("strided", ([rand(4, 20, 20)[::2, :, ::3], rand(20, 2, 6).transpose(0, 1)], idx), {})
    yield Sample("offset", ([padded(rand(2, 20, 9, dtype=torch.float16), 3)], idx), {})
    yield Sample("none-kept", ([rand(2, 20, 8)], idx[:, :0]), {})
    yield Sample("no-tokens", ([rand(2, 0, 8)], torch.zeros(2, 1, dtype=torch.int64)), {})
    yield Sample("no-rows", ([rand(0, 20, 8)], idx[:0]), {})


def gather_kv_samples() -> Iterator[Sample]:
    idx = torch.tensor([[0, 3, 4, 19], [1, 2, 7, 11]])
    for layout in ("HND", "NHD"):
        def cache(h: int, d: int, dtype: torch.dtype = torch.float32, layout: str = layout) -> Tensor:
            return rand(*((2, h, 20, d) if layout == "HND" else (2, 20, h, d)), dtype=dtype)

        yield Sample(f"{layout}-pair", ([cache(4, 16), cache(4, 16)], idx), {"kv_layout": layout})
        mixed = [cache(4, 16, torch.bfloat16), cache(1, 5), cache(2, 8).to(torch.float8_e4m3fn), cache(3, 7) > 0]
        yield Sample(f"{layout}-mixed", (mixed, idx.int()), {"kv_layout": layout})
        yield Sample(f"{layout}-layers", ([cache(2, 8, torch.float16) for _ in range(70)], idx), {"kv_layout": layout})
        yield Sample(f"{layout}-bad", ([cache(2, 8)], torch.tensor([[-5, 0], [20, 2**40]])), {"kv_layout": layout})
        yield Sample(f"{layout}-strided", ([cache(6, 24)[:, ::2, :, ::2] if layout == "HND" else
                                            cache(6, 24)[:, :, ::3, 1:12]], idx), {"kv_layout": layout})
        yield Sample(f"{layout}-expanded", ([cache(1, 8).expand(2, 5, 20, 8) if layout == "HND" else
                                             cache(1, 8).expand(2, 20, 5, 8)], idx), {"kv_layout": layout})
        yield Sample(f"{layout}-none", ([cache(2, 8)], idx[:, :0]), {"kv_layout": layout})
    yield Sample("HND-transposed", ([rand(2, 20, 3, 8).transpose(1, 2)], idx), {})


def oracle_merge(tokens: Tensor, assignment: Tensor, groups: int, weights: Tensor | None = None,
                 reduce: str = "mean") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 rows [B, groups, D], sizes [B, groups], and the sum of the absolute terms of each element."""
    x = tokens.detach().double().cpu().numpy()
    batch, n, d = x.shape
    w = np.ones((batch, n)) if weights is None else weights.double().cpu().numpy()
    rows, sizes, scale = np.zeros((batch, groups, d)), np.zeros((batch, groups)), np.zeros((batch, groups, d))
    with np.errstate(all="ignore"):
        for b in range(batch):
            for g in range(groups):
                members = [t for t in range(n) if int(assignment[b, t]) == g and w[b, t] != 0]
                for t in members:
                    rows[b, g] += w[b, t] * x[b, t]
                    scale[b, g] += np.abs(w[b, t] * x[b, t])
                    sizes[b, g] += w[b, t]
                if reduce == "mean" and members:
                    size = sizes[b, g]
                    rows[b, g] = x[b, members[0]] if len(members) == 1 else rows[b, g] / size if size else 0.0
                    scale[b, g] = np.abs(rows[b, g]) if len(members) == 1 else scale[b, g] / (abs(size) or 1)
    return rows, sizes, scale


def assert_merge_tokens(outputs: tuple[Tensor, Tensor], tokens: Tensor, assignment: Tensor, groups: int, *,
                        weights: Tensor | None = None, reduce: str = "mean") -> None:
    """Sums within the rounding of float32 and of the dtype, single members byte for byte, sizes."""
    merged, sizes = outputs
    rows, total, scale = oracle_merge(tokens, assignment, groups, weights, reduce)
    np.testing.assert_allclose(sizes.double().numpy(), total, rtol=1e-6, atol=1e-6)
    got = merged.double().numpy()
    limit = float(torch.finfo(merged.dtype).max)
    with np.errstate(all="ignore"):
        held = np.abs(rows) < limit * 0.999  # what overflows the dtype is infinite or NaN, by the order of the sum
        allowed = 1e-6 * np.maximum(scale, 1e-30) * tokens.shape[1] ** 0.5
        allowed += torch.finfo(merged.dtype).eps * np.abs(rows)
        allowed += float(torch.finfo(merged.dtype).smallest_normal)
        assert (np.abs(got - rows)[held] <= allowed[held]).all(), "a sum is off by more than rounding"
    assert not np.isfinite(got[np.isnan(rows)]).any()
    if reduce == "mean":
        used = np.ones_like(np.asarray(assignment), bool) if weights is None else np.asarray(weights) != 0
        for b, row in enumerate(np.asarray(assignment)):
            for g in range(groups):
                members = np.flatnonzero((row == g) & used[b])
                if len(members) == 1:
                    np.testing.assert_array_equal(bytes_of(merged[b, g]), bytes_of(tokens[b, members[0]]))
                elif len(members) == 0:
                    assert not got[b, g].any()


def merge_samples(dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(3)
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        groups = torch.randint(-1, 9, (2, 37), generator=generator)
        weights = torch.rand(2, 37, generator=generator)
        weights[:, ::5] = 0
        tokens = rand(2, 37, 20, dtype=dtype)
        yield Sample(f"{tag}-mean", (tokens, groups, 10), {})
        yield Sample(f"{tag}-weighted", (tokens, groups.int(), 9), {"weights": weights})
        yield Sample(f"{tag}-sum", (tokens, groups, 9), {"weights": weights, "reduce": "sum"})
        yield Sample(f"{tag}-strided", (rand(4, 40, 50, dtype=dtype)[::2, 1:38, 1:34:2], groups[:, :37], 9),
                     {"weights": weights.expand(3, 2, 37)[1]})
        yield Sample(f"{tag}-out-of-range", (tokens, groups * 1000 - 3, 9), {})
        yield Sample(f"{tag}-hostile", (hostile_tokens(12, 8, dtype)[None], torch.arange(12)[None] // 2, 6), {})
    yield Sample("wide", (rand(1, 5, 2100), torch.tensor([[0, 1, 1, 0, 1]]), 2), {})
    yield Sample("one-group", (rand(1, 300, 3), torch.zeros(1, 300, dtype=torch.int64), 1), {})
    yield Sample("each-alone", (rand(2, 7, 5), torch.arange(7).flip(0).expand(2, 7), 7), {})
    yield Sample("all-weights-zero", (rand(1, 7, 5), torch.zeros(1, 7, dtype=torch.int64), 2),
                 {"weights": torch.zeros(1, 7)})
    yield Sample("weights-cancel", (rand(1, 2, 5), torch.zeros(1, 2, dtype=torch.int64), 1),
                 {"weights": torch.tensor([[1.0, -1.0]])})
    yield Sample("no-groups", (rand(2, 7, 5), torch.full((2, 7), -1), 0), {})
    yield Sample("no-tokens", (rand(2, 0, 5), torch.zeros(2, 0, dtype=torch.int64), 3), {})
    yield Sample("no-rows", (rand(0, 7, 5), torch.zeros(0, 7, dtype=torch.int64), 3), {})
