"""quantize_kv and dequantize_kv: levels taken from the bytes in plain Python integers, bounds of the error, samples."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .base import Sample, bytes_of, rand

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FLT_MAX = float(torch.finfo(torch.float32).max)
FLT_MIN = float(torch.finfo(torch.float32).tiny)
ROUNDING = 4 * float(torch.finfo(torch.float32).eps)


def oracle_levels(codes: Tensor, bits: int, width: int) -> np.ndarray:
    """[.., width] levels of packed rows [.., bytes]."""
    raw = codes.numpy().astype(np.int64)
    count = raw.shape[-1]
    levels = np.zeros((*raw.shape[:-1], width), np.int64)
    for i in range(width):
        levels[..., i] = raw[..., i % count] // 2 ** (bits * (i // count)) % 2**bits
    return levels


def _assert_ranges(got: Tensor, groups: np.ndarray, used: np.ndarray, bits: int, slack: np.ndarray) -> None:
    """`got` [.., 2] smallest value and step of `groups` [.., members], of which those `used` count."""
    low, step = np.moveaxis(got.double().numpy(), -1, 0)
    with np.errstate(all="ignore"):
        least = np.where(used, groups, np.inf).min(-1, initial=np.inf)
        most = np.where(used, groups, -np.inf).max(-1, initial=-np.inf)
        empty = ~used.any(-1)
        bad = ~np.where(used, np.isfinite(groups), True).all(-1) | (most - least > FLT_MAX)
        assert np.isnan(low[bad]).all()
        assert np.isnan(step[bad]).all()
        assert not low[empty].any()
        assert not step[empty].any()
        sound = ~bad & ~empty
        want = (most - least) / (2**bits - 1)
        size = np.maximum(np.abs(most), np.abs(least))
        assert (np.abs(low - least)[sound] <= slack[sound] * size[sound] + FLT_MIN).all(), "not the smallest value"
        allowed = (slack + ROUNDING) * size + FLT_MIN
        assert (np.abs(step - want)[sound] <= allowed[sound]).all(), "not a step of the range"
        assert (step[sound] >= 0).all()


def assert_quantize_kv(outputs: Sequence[Sequence[Tensor]], key: Tensor, value: Tensor, indices: Sequence[Tensor],
                       bits: Sequence[int]) -> None:
    """Ranges and scales of their groups, then every level: the nearest one, and zeros where no value stands."""
    batch, heads, n, d = key.shape
    for c, (chosen, width) in enumerate(zip(indices, bits, strict=True)):
        key_codes, key_params, value_codes, value_params, scales = (kind[c] for kind in outputs)
        place = chosen.numpy()
        found = (place >= 0) & (place < n)
        k, v = np.zeros((2, batch, heads, place.shape[1], d))
        for b in range(batch):
            k[b][:, found[b]] = key[b].double().numpy()[:, place[b][found[b]]]
            v[b][:, found[b]] = value[b].double().numpy()[:, place[b][found[b]]]
        used = np.broadcast_to(found[:, None, :, None], k.shape)

        exact = np.zeros((batch, heads, d))
        _assert_ranges(key_params.mT, k.swapaxes(2, 3), used.swapaxes(2, 3), width, exact)
        with np.errstate(all="ignore"):
            largest = np.where(np.isfinite(v), np.abs(v), 0.0).max(2, initial=0.0)
            want = np.where(largest > 0, np.sqrt(largest), 1.0)
            np.testing.assert_allclose(scales.double().numpy(), want, rtol=2e-7)
            scaled = v / scales.double().numpy()[:, :, None]
            _assert_ranges(value_params, scaled, used, width, np.full(scaled.shape[:3], 2 * ROUNDING))
            low, step = np.moveaxis(key_params.double().numpy()[:, :, :, None], 2, 0)
            _assert_levels(key_codes, k, low, step, found, width)
            low, step = np.moveaxis(value_params.double().numpy()[..., None], 3, 0)
            _assert_levels(value_codes, scaled, low, step, found, width)


def _assert_levels(codes: Tensor, x: np.ndarray, low: np.ndarray, step: np.ndarray, found: np.ndarray,
                   bits: int) -> None:
    levels = oracle_levels(codes, bits, x.shape[-1])
    coded = np.broadcast_to(found[:, None, :, None], x.shape) & (np.broadcast_to(step, x.shape) > 0)
    assert not levels[~coded].any()
    exact = np.where(coded, (x - low) / np.where(step > 0, step, 1.0), 0.0)
    slack = 1e-5 * 2**bits + ROUNDING * np.abs(x) / np.where(step > 0, step, 1.0)
    assert (np.abs(levels - exact) <= 0.5 + slack)[coded].all(), "not the nearest level"
    # What is behind the last value of a row is zero.
    count, each = codes.shape[-1], 8 // bits
    padding = oracle_levels(codes, bits, count * each)[..., x.shape[-1]:]
    assert not padding.any()


def assert_dequantize_kv(outputs: Sequence[Tensor], key_codes: Sequence[Tensor], key_params: Sequence[Tensor],
                         value_codes: Sequence[Tensor], value_params: Sequence[Tensor], value_scales: Sequence[Tensor],
                         indices: Sequence[Tensor], bits: Sequence[int], tokens: int, *, dtype: torch.dtype) -> None:
    """Every row from the last class that names it, within the rounding of float32 and of the dtype."""
    for cache, (codes, params, by_channel) in zip(outputs, ((key_codes, key_params, True),
                                                            (value_codes, value_params, False)), strict=True):
        batch, heads, _, d = cache.shape
        want, size = np.zeros((2, batch, heads, tokens, d))
        for c, width in enumerate(bits):
            levels = oracle_levels(codes[c], width, d)
            low, step = np.moveaxis(params[c].double().numpy(), 2 if by_channel else 3, 0)
            axis = 2 if by_channel else 3
            low, step = np.expand_dims(low, axis), np.expand_dims(step, axis)
            scale = 1.0 if by_channel else value_scales[c].double().numpy()[:, :, None]
            with np.errstate(all="ignore"):
                rows, sizes = (low + levels * step) * scale, (np.abs(low) + levels * step) * scale
            for b in range(batch):
                for j, t in enumerate(indices[c][b].tolist()):
                    if 0 <= t < tokens:
                        want[b, :, t], size[b, :, t] = rows[b, :, j], sizes[b, :, j]
        got = cache.double().numpy()
        info = torch.finfo(dtype)
        lost = np.isnan(want)
        assert np.isnan(got[lost]).all()
        allowed = ROUNDING * size + info.eps * np.abs(want) + float(info.smallest_normal)
        held = ~lost & (np.abs(want) < float(info.max) * 0.999)
        assert (np.abs(got - want)[held] <= allowed[held]).all(), "not the values of the codes"


def assert_round_trip(restored: Sequence[Tensor], key: Tensor, value: Tensor, packed: Sequence[Sequence[Tensor]],
                      indices: Sequence[Tensor]) -> None:
    """Every element of every token comes back within half a step of its group and the rounding of its dtype."""
    info = torch.finfo(key.dtype)
    for name, cache, x in (("key", restored[0], key), ("value", restored[1], value)):
        for c, chosen in enumerate(indices):
            for b, row in enumerate(chosen.tolist()):
                want, got = x[b][:, row].double().numpy(), cache[b][:, row].double().numpy()
                if name == "key":
                    low, step = packed[1][c][b].double().numpy()[:, :, None].swapaxes(0, 1)
                    scale = np.ones(1)
                else:
                    low, step = np.moveaxis(packed[3][c][b].double().numpy(), -1, 0)[..., None]
                    scale = packed[4][c][b].double().numpy()[:, None]
                lost = np.broadcast_to(np.isnan(step), want.shape)
                assert np.isnan(got[lost]).all()
                with np.errstate(all="ignore"):
                    size = np.abs(want) + scale * (np.abs(low) + 256 * step)
                    allowed = 0.5 * step * scale + 4 * ROUNDING * size + 256 * FLT_MIN * scale
                    allowed += 0.51 * info.eps * np.abs(np.where(lost, 0.0, got)) + float(info.smallest_normal)
                assert (np.abs(got - want)[~lost] <= allowed[~lost]).all(), f"{name} is off by more than half a step"


def _hostile(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """K and V [1, 2, 24, 9]: NaN, infinities, constant channels and tokens, tiny and huge ranges, outliers."""
    big = 6e4 if dtype == torch.float16 else 3e38
    key, value = rand(1, 2, 24, 9, seed=4), rand(1, 2, 24, 9, seed=5)
    key[0, 0, 3, 0] = torch.nan
    key[0, 0, 5, 1] = torch.inf
    key[0, 0, 6, 2], key[0, 0, 7, 2] = big, -big
    key[0, 0, :, 3] = 1.7
    key[0, 0, :, 4] = -0.0
    key[0, 0, :, 5] *= 1e-35
    key[0, 0, :, 8] *= 1e-40
    key[0, 0, 2, 6] = big / 4
    key[0, 0, :, 7] = 1000 + 0.01 * key[0, 0, :, 7]
    value[0, 0, 3, 0] = torch.nan
    value[0, 0, 5, 1] = -torch.inf
    value[0, 0, 6] = 2.5
    value[0, 0, 7] = 0.0
    value[0, 0, :, 4] = 0.0
    value[0, 0, :, 5] *= 1e-30
    value[0, 0, :, 6] *= 1e3
    value[0, 0, 9, 7] = big
    value[0, 0, 10] *= 1e-38
    return key.to(dtype), value.to(dtype)


def _split(n: int, batch: int, *counts: int, seed: int = 1) -> list[Tensor]:
    order = torch.rand(batch, n, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    return [part.sort(-1).values for part in order[:, :sum(counts)].split(list(counts), 1)]


def quantize_samples(dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        key, value = rand(2, 3, 37, 33, dtype=dtype), rand(2, 3, 37, 33, dtype=dtype, seed=1)
        classes = _split(37, 2, 5, 13, 19)
        yield Sample(f"{tag}-8-4-2", (key, value, classes, [8, 4, 2]), {})
        yield Sample(f"{tag}-hostile", (*_hostile(dtype), _split(24, 1, 12, 12), [4, 2]), {})
        yield Sample(f"{tag}-hostile-8", (*_hostile(dtype), [torch.arange(24)[None]], [8]), {})
        wide = rand(4, 50, 4, 40, dtype=dtype)
        yield Sample(f"{tag}-strided", (wide[::2, 1:38, 1:, 1:34:2].transpose(1, 2),
                                        rand(37, 3, 17, 2, dtype=dtype).permute(3, 1, 0, 2),
                                        [c.int() for c in classes], [4, 2, 8]), {})
        yield Sample(f"{tag}-expanded", (key[:, :1].expand(2, 3, 37, 33), value, classes[:1], [2]), {})
    key, value = rand(1, 2, 20, 8), rand(1, 2, 20, 8, seed=1)
    bad = torch.tensor([[-1, 3, 20, 2**40, 7, 7]])
    yield Sample("out-of-range", (key, value, [bad, _split(20, 1, 4)[0]], [4, 2]), {})
    yield Sample("all-out-of-range", (key, value, [torch.full((1, 3), 20)], [8]), {})
    yield Sample("one-token-twice", (key, value, [torch.tensor([[5]]), torch.tensor([[5]])], [2, 8]), {})
    everything = torch.arange(20)[None]
    yield Sample("empty-class", (key, value, [everything[:, :0], everything], [4, 2]), {})
    yield Sample("one-channel", (key[..., :1], value[..., :1], [everything], [2]), {})
    long = rand(1, 1, 300, 130), rand(1, 1, 300, 130, seed=1)
    yield Sample("long-rows", (*long, _split(300, 1, 100, 200), [4, 2]), {})
    for shape in ((0, 2, 20, 8), (1, 0, 20, 8), (1, 2, 0, 8), (1, 2, 20, 0)):
        chosen = torch.arange(min(3, shape[2])).expand(shape[0], -1)
        yield Sample(f"empty-{'x'.join(map(str, shape))}", (rand(*shape), rand(*shape), [chosen], [4]), {})


def dequantize_samples(dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[Sample]:
    """Random codes of the samples above in buffers with room at their ends, so that strides show."""
    generator = torch.Generator().manual_seed(6)

    def roomy(t: Tensor) -> Tensor:
        return torch.cat([t, t], -1)[..., :t.shape[-1]] if t.numel() else t

    for sample in quantize_samples(dtypes):
        key, _, indices, bits = sample.args
        batch, heads, tokens, d = key.shape
        parts: tuple[list[Tensor], ...] = ([], [], [], [], [])
        for chosen, width in zip(indices, bits, strict=True):
            count = chosen.shape[1]
            codes = [torch.randint(0, 256, (batch, heads, count, (d * width + 7) // 8), dtype=torch.uint8,
                                   generator=generator) for _ in range(2)]
            key_params, value_params = rand(batch, heads, 2, d, seed=2), rand(batch, heads, count, 2, seed=3)
            if "hostile" in sample.name:
                key_params[:, :, :, :2], value_params[:, :, 3] = torch.nan, torch.nan
            params = (key_params.abs(), value_params.abs(), rand(batch, heads, d, seed=4).abs())
            for out, t in zip(parts, (codes[0], params[0], codes[1], params[1], params[2]), strict=True):
                out.append(roomy(t))
        yield Sample(sample.name, (*parts, indices, bits, tokens), {"dtype": key.dtype})
    key, value = rand(1, 1, 4, 3), rand(1, 1, 4, 3)
    yield Sample("more-tokens-than-named", (*_plain(key, value), [torch.arange(4)[None]], [8], 9),
                 {"dtype": torch.float32})


def _plain(key: Tensor, value: Tensor) -> list[list[Tensor]]:
    shape = key.shape
    codes = torch.arange(key.numel(), dtype=torch.uint8).view(shape)
    return [[codes], [rand(*shape[:2], 2, shape[3]).abs()], [codes], [rand(*shape[:3], 2).abs()],
            [rand(*shape[:2], shape[3]).abs()]]


def packed_bytes(packed: Sequence[Sequence[Tensor]]) -> int:
    return sum(bytes_of(t).size for kind in packed for t in kind)
