"""Pooling, shuffling and quantising, as published code writes them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vtkernels.testing import assert_round_trip, rand

from ..call import Call
from ..case import Case, Counts
from .family import Family

F32, BF16 = torch.float32, torch.bfloat16
_BOTH = ("cpu", "gpu")
SPAN_START = 35  # text before the visual tokens


def pool_usual(tokens: Tensor, start: int, length: int, window: int, columns: int) -> Tensor:
    """The span pooled channels first, as torch wants it, and put back between the rest."""
    span = tokens[:, start:start + length].mT
    if columns:
        pooled = F.avg_pool2d(span.unflatten(-1, (-1, columns)), window).flatten(2)
    else:
        pooled = F.avg_pool1d(span, window)
    return torch.cat([tokens[:, :start], pooled.mT, tokens[:, start + length:]], 1)


def pool_view(tokens: Tensor, start: int, length: int, window: int, columns: int) -> Tensor:
    """Means over the dimensions of a view; nothing is transposed."""
    span = tokens[:, start:start + length]
    if columns:
        pooled = span.unflatten(1, (-1, window, columns // window, window)).mean((2, 4)).flatten(1, 2)
    else:
        pooled = span.unflatten(1, (-1, window)).mean(2)
    return torch.cat([tokens[:, :start], pooled, tokens[:, start + length:]], 1)


def shuffle_usual(tokens: Tensor, grid_width: int, factor: int) -> Tensor:
    """InternVL's steps: two permutations, both copied."""
    n, count, c = tokens.shape
    h, w = count // grid_width, grid_width
    x = tokens.view(n, h, w // factor, c * factor).permute(0, 2, 1, 3).contiguous()
    x = x.view(n, w // factor, h // factor, c * factor * factor)
    return x.permute(0, 2, 1, 3).contiguous().flatten(1, 2)


def shuffle_view(tokens: Tensor, grid_width: int, factor: int) -> Tensor:
    grid = tokens.unflatten(1, (-1, factor, grid_width // factor, factor))
    return grid.permute(0, 1, 3, 2, 4, 5).contiguous().flatten(3).flatten(1, 2)


def unshuffle_usual(tokens: Tensor, grid_width: int, factor: int) -> Tensor:
    grid = tokens.unflatten(1, (-1, grid_width // factor)).unflatten(-1, (factor, factor, -1))
    return grid.permute(0, 1, 3, 2, 4, 5).contiguous().flatten(1, 4)


def unshuffle_pixels(tokens: Tensor, grid_width: int, factor: int) -> Tensor:
    """Through torch's own pixel shuffle, whose channels come first."""
    grid = tokens.unflatten(1, (-1, grid_width // factor)).unflatten(-1, (factor * factor, -1))
    return F.pixel_shuffle(grid.permute(0, 4, 3, 1, 2).flatten(1, 2), factor).flatten(2).mT.contiguous()


def _pack(level: Tensor, bits: int) -> Tensor:
    parts = level.to(torch.uint8).chunk(8 // bits, -1)
    packed = parts[0].clone()
    for i, part in enumerate(parts[1:], 1):
        packed |= part << (bits * i)
    return packed


def quantize_usual(key: Tensor, value: Tensor, indices: list[Tensor], bits: list[int]) -> tuple[list[Tensor], ...]:
    """ZipCache's steps for each class: gather, ranges, levels, bytes, in float32."""
    out: tuple[list[Tensor], ...] = ([], [], [], [], [])
    for chosen, width in zip(indices, bits, strict=True):
        rows = chosen[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
        levels = 2**width - 1
        k, v = key.gather(2, rows).float(), value.gather(2, rows).float()
        low, high = k.aminmax(dim=2, keepdim=True)
        step = (high - low) / levels
        out[0].append(_pack((k - low).div_(step).round_(), width))
        out[1].append(torch.cat([low, step], 2))
        scale = v.abs().amax(2, keepdim=True).sqrt_()
        v /= scale
        low, high = v.aminmax(dim=3, keepdim=True)
        step = (high - low) / levels
        out[2].append(_pack((v - low).div_(step).round_(), width))
        out[3].append(torch.cat([low, step], 3))
        out[4].append(scale[:, :, 0])
    return out


def _unpack(packed: Tensor, bits: int) -> Tensor:
    return torch.cat([packed >> (bits * i) & (2**bits - 1) for i in range(8 // bits)], -1).float()


def dequantize_usual(key_codes: list[Tensor], key_params: list[Tensor], value_codes: list[Tensor],
                     value_params: list[Tensor], scales: list[Tensor], indices: list[Tensor], bits: list[int],
                     tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (*key_codes[0].shape[:2], tokens, scales[0].shape[-1])
    key, value = (torch.zeros(shape, dtype=dtype, device=scales[0].device) for _ in range(2))
    for c, (chosen, width) in enumerate(zip(indices, bits, strict=True)):
        rows = chosen[:, None, :, None].expand(-1, shape[1], -1, shape[3])
        k = _unpack(key_codes[c], width).mul_(key_params[c][:, :, 1:]).add_(key_params[c][:, :, :1])
        v = _unpack(value_codes[c], width).mul_(value_params[c][..., 1:]).add_(value_params[c][..., :1])
        key.scatter_(2, rows, k.to(dtype))
        value.scatter_(2, rows, v.mul_(scales[c][:, :, None]).to(dtype))
    return key, value


def _tokens(case: Case, device: torch.device) -> Tensor:
    return rand(case.B, case.N, case.D, dtype=case.dtype, seed=15).to(device)


def _pool(case: Case, device: torch.device) -> Call:
    """`K` tokens on a side of a window, of the `F` columns of a grid or, without, of a sequence."""
    tokens = rand(case.B, case.N + SPAN_START + 64, case.D, dtype=case.dtype, seed=15).to(device)
    kwargs = {"grid_width": case.F, "span_start": SPAN_START, "span_len": case.N}
    return Call((tokens, case.K), kwargs, (tokens, SPAN_START, case.N, case.K, case.F), "generated")


def _shuffle(case: Case, device: torch.device) -> Call:
    args = (_tokens(case, device), case.F, case.K)
    return Call(args, {}, args, "generated")


def _coarse(case: Case, device: torch.device) -> Call:
    tokens = _tokens(case, device).view(case.B, case.N // case.K**2, case.D * case.K**2)
    args = (tokens, case.F, case.K)
    return Call(args, {}, args, "generated")


def _caches(case: Case, device: torch.device) -> tuple[Tensor, Tensor, list[Tensor], list[int]]:
    """Keys with channels of unlike size, values with some: the most important tokens in 4 bits, the rest in 2."""
    key, value = (rand(case.B, case.H, case.N, case.d, seed=s) for s in (16, 17))
    size = 1 + 4 * rand(1, case.H, 1, case.d, seed=18).abs()
    order = torch.rand(case.B, case.N, generator=torch.Generator().manual_seed(19)).argsort(-1)
    classes = [part.sort(-1).values.to(device) for part in order.split([case.k, case.N - case.k], 1)]
    return ((key * size + size).to(case.dtype).to(device), (value * size).to(case.dtype).to(device), classes, [4, 2])


def _quantize(case: Case, device: torch.device) -> Call:
    args = _caches(case, device)
    return Call(args, {}, args, "generated")


def _dequantize(case: Case, device: torch.device) -> Call:
    key, value, classes, bits = _caches(case, device)
    args: tuple = (*quantize_usual(key, value, classes, bits), classes, bits, case.N)
    return Call(args, {"dtype": case.dtype}, (*args, case.dtype), "generated")


def _pool_counts(c: Case) -> Counts:
    rest, windows = SPAN_START + 64, c.N // (c.K * (c.K if c.F else 1))
    return Counts(c.B * (c.N + windows + 2 * rest) * c.D * c.dtype.itemsize, c.tokens * c.D)


def _shuffle_counts(c: Case) -> Counts:
    return Counts(2 * c.tokens * c.D * c.dtype.itemsize, 0)


def _quantize_counts(c: Case) -> Counts:
    """K and V whole; indices, codes, ranges and scales."""
    elements = c.B * c.H * c.d
    codes = 2 * elements * (c.k * 4 + (c.N - c.k) * 2) // 8
    ranges = 4 * (2 * 3 * elements + 2 * c.B * c.H * c.N)
    return Counts(2 * elements * c.N * c.dtype.itemsize + codes + ranges + 8 * c.tokens, 8 * elements * c.N)


def _check_pool(case: Case, call: Call, outputs: Tensor) -> None:
    tokens = call.args[0]
    gold = pool_view(tokens.double(), *call.peer_args[1:])
    assert outputs.shape == gold.shape, f"shape {tuple(outputs.shape)}"
    assert outputs.dtype == tokens.dtype, f"dtype {outputs.dtype}"
    error = float((outputs - gold).abs().max())
    assert error <= (1e-6 if case.dtype == F32 else 8e-3) * float(tokens.abs().max()), f"off by {error:.3g}"


def _peer_pool(case: Case, call: Call, theirs: Tensor, ours: Tensor) -> None:
    _check_pool(case, call, theirs)


def _check_shuffle(case: Case, call: Call, outputs: Tensor) -> None:
    assert outputs.dtype == case.dtype
    want = (shuffle_usual if case.op == "shuffle_tokens" else unshuffle_usual)(*call.args)
    assert torch.equal(outputs, want), "not the tokens of the windows"


def _peer_shuffle(case: Case, call: Call, theirs: Tensor, ours: Tensor) -> None:
    assert torch.equal(theirs, ours), "other tokens"


def _check_quantize(case: Case, call: Call, outputs: tuple[list[Tensor], ...]) -> None:
    key, value, indices, bits = (call.args[0].cpu(), call.args[1].cpu(), [i.cpu() for i in call.args[2]], call.args[3])
    packed = [[t.cpu() for t in kind] for kind in outputs]
    k_codes, k_params, v_codes, v_params, scales = packed
    restored = dequantize_usual(k_codes, k_params, v_codes, v_params, scales, indices, bits, case.N, torch.float32)
    assert_round_trip(restored, key.float(), value.float(), packed, indices)
    for c, (chosen, width) in enumerate(zip(indices, bits, strict=True)):
        rows = key.gather(2, chosen[:, None, :, None].expand(-1, case.H, -1, case.d)).float()
        low, high = rows.aminmax(dim=2)
        assert float((packed[1][c][:, :, 0] - low).abs().max()) == 0, "not the smallest keys"
        step = (high - low) / (2**width - 1)
        assert float((packed[1][c][:, :, 1] - step).abs().max()) <= 1e-6 * float(high.abs().max()), "not the steps"
        assert packed[0][c].shape[-1] == case.d * width // 8, "not packed"


def _peer_quantize(case: Case, call: Call, theirs: tuple[list[Tensor], ...], ours: tuple[list[Tensor], ...]) -> None:
    _check_quantize(case, call, theirs)


def _check_dequantize(case: Case, call: Call, outputs: tuple[Tensor, Tensor]) -> None:
    gold = dequantize_usual(*(*call.peer_args[:-1], torch.float32))
    for got, want in zip(outputs, gold, strict=True):
        assert got.dtype == case.dtype
        assert got.shape == want.shape, f"shape {tuple(got.shape)}"
        allowed = (1e-6 if case.dtype == F32 else 5e-3) * float(want.abs().max())
        assert float((got.float() - want).abs().max()) <= allowed, "not the values of the codes"


def _peer_dequantize(case: Case, call: Call, theirs: tuple[Tensor, Tensor], ours: tuple[Tensor, Tensor]) -> None:
    _check_dequantize(case, call, theirs)


OPS = {
    "pool_span": Family(
        (Case("pool_span", "576x4096-sequence8", BF16, _BOTH, N=576, D=4096, K=8),
         Case("pool_span", "2880x4096-sequence8", F32, _BOTH, N=2880, D=4096, K=8),
         Case("pool_span", "16x576x1024-grid2", BF16, _BOTH, B=16, N=576, D=1024, K=2, F=24),
         Case("pool_span", "tiny", F32, ("quick",), B=2, N=40, D=16, K=2, F=4)),
        _pool_counts, _pool, {"eager": pool_usual, "better": pool_view}, _check_pool, _peer_pool),
    "shuffle_tokens": Family(
        (Case("shuffle_tokens", "13x1024x1024", BF16, _BOTH, B=13, N=1024, D=1024, K=2, F=32),
         Case("shuffle_tokens", "16384x768", F32, _BOTH, N=16384, D=768, K=2, F=128),
         Case("shuffle_tokens", "tiny", F32, ("quick",), B=2, N=40, D=16, K=2, F=4)),
        _shuffle_counts, _shuffle, {"eager": shuffle_usual, "better": shuffle_view}, _check_shuffle, _peer_shuffle),
    "unshuffle_tokens": Family(
        (Case("unshuffle_tokens", "16384x768", F32, _BOTH, N=16384, D=768, K=2, F=128),
         Case("unshuffle_tokens", "tiny", F32, ("quick",), B=2, N=40, D=16, K=2, F=4)),
        _shuffle_counts, _coarse, {"eager": unshuffle_usual, "better": unshuffle_pixels}, _check_shuffle,
        _peer_shuffle),
    "quantize_kv": Family(
        (Case("quantize_kv", "H8-2880x128-4bit25", BF16, _BOTH, N=2880, H=8, d=128, keep=0.25),
         Case("quantize_kv", "H32-576x128-4bit60", F32, _BOTH, N=576, H=32, d=128, keep=0.6),
         Case("quantize_kv", "tiny", F32, ("quick",), B=2, N=40, H=2, d=16)),
        _quantize_counts, _quantize, {"eager": quantize_usual}, _check_quantize, _peer_quantize),
    "dequantize_kv": Family(
        (Case("dequantize_kv", "H8-2880x128-4bit25", BF16, _BOTH, N=2880, H=8, d=128, keep=0.25),
         Case("dequantize_kv", "tiny", F32, ("quick",), B=2, N=40, H=2, d=16)),
        _quantize_counts, _dequantize, {"eager": dequantize_usual}, _check_dequantize, _peer_dequantize),
}
