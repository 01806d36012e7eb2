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


def oracle_kv(t: Tensor, indices: Tensor, tensor: int, kv_layout: str) -> np.ndarray:
    """Bytes of a gathered cache for indices [B, k], [B, H, k] or [L, B, H, k]."""
    if indices.dim() == 4:
        indices = indices[tensor]
    heads_first = t if kv_layout == "HND" else t.transpose(1, 2)
    own = indices if indices.dim() == 3 else indices[:, None]
    heads = [oracle_rows(heads_first[:, h], own[:, h % own.shape[1]].numpy(), 0, 1)
             for h in range(heads_first.shape[1])]
    return np.stack(heads, 1 if kv_layout == "HND" else 2)


def assert_gather_kv(outputs: Sequence[Tensor], kv: Sequence[Tensor], indices: Tensor, *,
                     kv_layout: str = "HND") -> None:
    for i, (t, out) in enumerate(zip(kv, outputs, strict=True)):
        np.testing.assert_array_equal(bytes_of(out), oracle_kv(t, indices, i, kv_layout))


def copied(t: Tensor) -> Tensor:
    """The same tensor in a copy of all of its memory, what lies between its elements included."""
    return t.new_empty(0).set_(t.untyped_storage().clone(), t.storage_offset(), t.shape, t.stride())


def assert_gather_kv_inplace(changed: Sequence[Tensor], kv: Sequence[Tensor], indices: Tensor, *,
                             kv_layout: str = "HND") -> None:
    """`changed` against `kv` as it was: the first k tokens gathered, every other byte of the memory untouched."""
    kept, token_dim = indices.shape[-1], 2 if kv_layout == "HND" else 1
    moved = torch.where(indices < torch.arange(kept), -1, indices)
    for i, (t, before) in enumerate(zip(changed, kv, strict=True)):
        want = copied(before)
        if kept:
            rows = torch.from_numpy(oracle_kv(before, moved, i, kv_layout)).view(before.dtype).squeeze(-1)
            want.narrow(token_dim, 0, kept).copy_(rows)
        got, expected = (torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage()) for x in (t, want))
        np.testing.assert_array_equal(got.numpy(), expected.numpy())


def oracle_rotate(keys: Tensor, deltas: Tensor, inv_freq: Tensor, interleaved: bool = False,
                  kv_layout: str = "HND") -> tuple[np.ndarray, np.ndarray]:
    """float64 rotation by complex numbers, [B, H, N, d], and the length of the pair that each element belongs to."""
    x = (keys if kv_layout == "HND" else keys.transpose(1, 2)).double().numpy()
    axes = deltas.dim() == 3
    delta = (deltas if axes else deltas[None]).double().numpy()
    freq = (inv_freq if axes else inv_freq[None]).double().numpy()
    pairs = freq.shape[1]
    places = np.arange(2 * pairs).reshape(pairs, 2) if interleaved else np.arange(2 * pairs).reshape(2, pairs).T
    rotated, length = x.copy(), np.abs(x)
    with np.errstate(all="ignore"):
        turn = np.exp(1j * np.einsum("abn,ap->bnp", delta, freq))[:, None]
        pair = (x[..., places[:, 0]] + 1j * x[..., places[:, 1]]) * turn
        for axis, part in ((0, pair.real), (1, pair.imag)):
            rotated[..., places[:, axis]] = part
            length[..., places[:, axis]] = np.abs(pair)
    return rotated, length


def assert_rotate_keys(out: Tensor, keys: Tensor, deltas: Tensor, inv_freq: Tensor, *, interleaved: bool = False,
                       kv_layout: str = "HND") -> None:
    """Within the rounding of float32 arithmetic and of the dtype; byte for byte where nothing turns."""
    want, length = oracle_rotate(keys, deltas, inv_freq, interleaved, kv_layout)
    got = (out if kv_layout == "HND" else out.transpose(1, 2)).double().numpy()
    info = torch.finfo(out.dtype)
    with np.errstate(all="ignore"):
        held = np.isfinite(want) & (np.abs(want) < float(info.max) * 0.99)
        allowed = 4e-7 * length + float(info.eps) * np.abs(want) + float(info.smallest_normal)
        assert (np.abs(got - want)[held] <= allowed[held]).all(), "a key is off by more than rounding"
    still = (deltas == 0).all(0) if deltas.dim() == 3 else deltas == 0
    token_dim = 2 if kv_layout == "HND" else 1
    for b, n in still.nonzero().tolist():
        np.testing.assert_array_equal(bytes_of(out[b].select(token_dim - 1, n)),
                                      bytes_of(keys[b].select(token_dim - 1, n)))
    beyond = 2 * inv_freq.shape[-1]
    np.testing.assert_array_equal(bytes_of(out[..., beyond:]), bytes_of(keys[..., beyond:]))


def gather_tokens_samples() -> Iterator[Sample]:
    ids = torch.arange(20)
    idx = torch.tensor([[0, 3, 4, 19], [1, 2, 7, 11]])
    yield Sample("hidden", ([rand(2, 20, 33)], idx), {})
    yield Sample("aligned", ([rand(2, 20, 16, dtype=torch.bfloat16), ids.expand(2, 20), ids.expand(3, 2, 20),
                              rand(2, 20, 3, 5)], idx.int()), {"token_dims": [1, 1, 2, 1]})
    yield Sample("out-of-range", ([rand(2, 20, 8)], torch.tensor([[-1, 0, 20], [2**31, 5, -2**40]])), {})
    yield Sample("past-the-end", ([rand(2, 20, 8)], torch.tensor([[0, 3], [19, 20]])), {})
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
        heads = torch.randint(-1, 21, (2, 4, 5), generator=torch.Generator().manual_seed(1))
        layers = torch.randint(-1, 21, (3, 2, 4, 5), generator=torch.Generator().manual_seed(2))
        three = [cache(4, 16, torch.bfloat16), cache(4, 5), cache(4, 1)]
        yield Sample(f"{layout}-heads", (three, heads.int()), {"kv_layout": layout})
        yield Sample(f"{layout}-tensors", (three, layers), {"kv_layout": layout})
        shared = [cache(4, 16), cache(1, 16), cache(3, 16)]
        yield Sample(f"{layout}-tensors-one-head", (shared, layers[:, :, :1]), {"kv_layout": layout})
        wide = cache(12, 9)[:, ::3, :, 1::2] if layout == "HND" else cache(12, 9)[:, :, ::3, 1::2]
        yield Sample(f"{layout}-heads-strided", ([wide, wide[..., :3]], layers.expand(3, 2, 4, 5)[:2, ..., ::2]),
                     {"kv_layout": layout})
        yield Sample(f"{layout}-heads-shared", ([cache(4, 8)], heads[:, :1].expand(2, 4, 5)), {"kv_layout": layout})
        yield Sample(f"{layout}-heads-no-bytes", ([cache(4, 8), cache(4, 0)], layers[:2]), {"kv_layout": layout})
        yield Sample(f"{layout}-heads-none", ([cache(4, 8)], heads[..., :0]), {"kv_layout": layout})
    yield Sample("HND-transposed", ([rand(2, 20, 3, 8).transpose(1, 2)], idx), {})


def gather_kv_inplace_samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(5)

    def ascending(*lead: int) -> Tensor:
        return torch.rand(*lead, 90, generator=generator).argsort(-1)[..., :40].sort(-1).values

    for layout in ("HND", "NHD"):
        def cache(h: int, d: int, dtype: torch.dtype = torch.float32, layout: str = layout) -> Tensor:
            return rand(*((2, h, 90, d) if layout == "HND" else (2, 90, h, d)), dtype=dtype)

        options = {"kv_layout": layout}
        mixed = [cache(4, 16, torch.bfloat16), cache(1, 5), cache(2, 8).to(torch.float8_e4m3fn), cache(3, 7) > 0]
        yield Sample(f"{layout}-pair", ([cache(2, 16), cache(2, 16)], ascending(2)), options)
        yield Sample(f"{layout}-mixed", (mixed, ascending(2).int()), options)
        yield Sample(f"{layout}-heads", ([cache(3, 8), cache(3, 5)], ascending(2, 3)), options)
        yield Sample(f"{layout}-tensors", ([cache(3, 8), cache(3, 8)], ascending(2, 2, 3)), options)
        yield Sample(f"{layout}-all", ([cache(2, 8)], torch.arange(90).expand(2, 90)), options)
        bad = ascending(2)
        bad[0, 3], bad[0, 9], bad[1, 0], bad[1, 30:] = 2**40, -7, 90, -1
        yield Sample(f"{layout}-bad", ([cache(2, 8)], bad), options)
        yield Sample(f"{layout}-descending", ([cache(2, 8)], ascending(2).flip(-1).contiguous()), options)
        yield Sample(f"{layout}-repeated", ([cache(2, 8)], torch.full((2, 20), 9)), options)
        wide = cache(6, 20)[:, ::2, :, 1::3] if layout == "HND" else cache(6, 20)[:, :, ::2, 1::3]
        yield Sample(f"{layout}-strided", ([wide], ascending(2)), options)
        yield Sample(f"{layout}-none", ([cache(2, 8)], ascending(2)[:, :0]), options)


def rotate_samples(
        dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(6)
    freq = 10000.0 ** -(torch.arange(0, 16, 2) / 16)
    deltas = -torch.randint(0, 4000, (2, 23), generator=generator)
    deltas[0, ::4] = 0
    three = torch.stack([deltas, deltas // 3, deltas * 2])
    sections = torch.zeros(3, 8)
    for axis, (first, last) in enumerate(((0, 2), (2, 5), (5, 8))):
        sections[axis, first:last] = freq[first:last]
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        keys = rand(2, 3, 23, 16, dtype=dtype)
        yield Sample(f"{tag}-half", (keys, deltas, freq), {})
        yield Sample(f"{tag}-interleaved", (keys, deltas.int(), freq), {"interleaved": True})
        yield Sample(f"{tag}-mrope", (keys.transpose(1, 2), three, sections), {"kv_layout": "NHD"})
        yield Sample(f"{tag}-partial", (rand(2, 5, 23, 21, dtype=dtype), deltas, freq), {"interleaved": True})
        yield Sample(f"{tag}-strided", (rand(4, 3, 25, 40, dtype=dtype)[::2, :, 1:24, ::2],
                                        torch.stack([deltas, deltas], -1)[..., 1], freq.repeat_interleave(2)[::2]), {})
        hostile = hostile_tokens(23, 16, dtype).expand(2, 1, 23, 16)
        yield Sample(f"{tag}-hostile", (hostile, deltas, freq), {})
    yield Sample("far", (rand(1, 2, 4, 16), torch.tensor([[1 << 20, -(1 << 24), 1 << 31, 1]]), freq), {})
    yield Sample("wide-nhd", (rand(1, 5, 3, 300), torch.arange(5)[None], 1 / torch.arange(1, 141)),
                 {"kv_layout": "NHD"})
    yield Sample("many-heads", (rand(2, 19, 5, 16), deltas[:, :5], freq), {})
    yield Sample("no-pairs", (rand(2, 3, 23, 16), deltas, freq[:0]), {})
    yield Sample("no-tokens", (rand(2, 3, 0, 16), deltas[:, :0], freq), {})
    yield Sample("no-rows", (rand(0, 3, 23, 16), deltas[:0], freq), {})


def oracle_merge(tokens: Tensor, assignment: Tensor, groups: int, weights: Tensor | None = None,
                 reduce: str = "mean") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 rows [B, groups, D], sizes [B, groups], and the sum of the absolute terms of each element.

    That of a mean grows as weights of other signs cancel, to infinity where they leave nothing but rounding.
    """
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
                    if len(members) == 1:
                        scale[b, g] = np.abs(rows[b, g])
                        continue
                    absolute = np.abs(w[b, members]).sum()
                    if absolute * len(members) * 1e-6 >= abs(size):
                        scale[b, g] = np.inf
                    else:
                        scale[b, g] = (scale[b, g] + np.abs(rows[b, g]) * (absolute - abs(size))) / abs(size)
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
        yield Sample(f"{tag}-transposed", (tokens.mT.contiguous().mT, groups.T.contiguous().T, 9), {})
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
