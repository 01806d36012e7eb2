"""Calls of the ops that move, merge, pool, rotate and quantise tokens."""

import torch

from vtkernels.testing import Sample

from .draws import Draws
from .tensors import BYTES, FLOATS, floats, generator, index, lay_out, raw

INDEX = (torch.int64, torch.int32)


def gather_tokens(d: Draws) -> Sample:
    batch, n = d.size(3, 0), d.size(30, 0)
    tensors, dims = [], []
    for _ in range(d.between(1, 4)):
        lead = [d.size(3, 0) for _ in range(d.pick((0, 0, 1, 2)))]
        tail = [d.size(20, 0) for _ in range(d.pick((1, 0, 2)))]
        tensors.append(raw(d, *lead, batch, n, *tail, dtype=d.pick(BYTES)))
        dims.append(len(lead) + 1)
    options = {"token_dims": dims} if any(dim != 1 for dim in dims) or d.chance(20) else {}
    return Sample("", (tensors, index(d, (batch, d.size(20, 0)), n, d.pick(INDEX))), options)


def _caches(d: Draws, own: bool) -> tuple[list[torch.Tensor], int, int, str, int]:
    """Caches of one batch and length, their batch, tokens, layout, and heads where all have the same (or 0)."""
    layout, batch, n = d.pick(("HND", "NHD")), d.size(3, 0), d.size(30, 0)
    heads = [d.size(4)] * d.between(1, 4)
    if d.chance(30):
        heads = [d.size(4) for _ in heads]
    kv = []
    for h in heads:
        width = d.size(20, 1 if own else 0)
        shape = (batch, h, n, width) if layout == "HND" else (batch, n, h, width)
        kv.append(raw(d, *shape, dtype=d.pick(BYTES), own=own))
    return kv, batch, n, layout, heads[0] if len(set(heads)) == 1 else 0


def _kv_index(d: Draws, kv: list, batch: int, n: int, heads: int, kept: int) -> torch.Tensor:
    own = d.pick((heads, 1)) if heads else 1
    shape = d.pick(((batch, kept), (batch, own, kept), (len(kv), batch, own, kept)))
    return index(d, shape, n, d.pick(INDEX))


def gather_kv(d: Draws) -> Sample:
    kv, batch, n, layout, heads = _caches(d, own=False)
    return Sample("", (kv, _kv_index(d, kv, batch, n, heads, d.size(20, 0))), {"kv_layout": layout})


def gather_kv_inplace(d: Draws) -> Sample:
    kv, batch, n, layout, heads = _caches(d, own=True)
    kept = d.between(0, n)
    indices = _kv_index(d, kv, batch, n, heads, kept)
    if d.chance(60) and n:
        order = torch.rand((*indices.shape[:-1], n), generator=generator(d)).argsort(-1)
        indices = lay_out(d, order[..., :kept].sort(-1).values.to(indices.dtype))
    return Sample("", (kv, indices), {"kv_layout": layout})


def rotate_keys(d: Draws) -> Sample:
    layout, batch, heads, n, width = d.pick(("HND", "NHD")), d.size(2, 0), d.size(3), d.size(12, 0), d.size(40, 0)
    pairs, axes = d.between(0, width // 2), d.pick((0, 0, 1, 3))
    shape = (batch, heads, n, width) if layout == "HND" else (batch, n, heads, width)
    lead = (axes,) if axes else ()
    most = d.pick((100, 4000, 1 << 20))
    deltas = torch.randint(-most, most + 1, (*lead, batch, n), generator=generator(d))
    deltas[torch.rand(deltas.shape, generator=generator(d)) < 0.2] = 0
    freq = 10000.0 ** -(torch.rand(*lead, pairs, generator=generator(d)))
    freq[torch.rand(freq.shape, generator=generator(d)) < d.pick((0.0, 0.4))] = 0.0  # pairs that stay beside others
    return Sample("", (floats(d, *shape, dtype=d.pick(FLOATS)), lay_out(d, deltas.to(d.pick(INDEX))),
                       lay_out(d, freq)), {"interleaved": d.chance(50), "kv_layout": layout})


def merge_tokens(d: Draws) -> Sample:
    batch, n, width, groups = d.size(3, 0), d.size(24, 0), d.size(30, 0), d.size(12, 0)
    options: dict = {"reduce": d.pick(("mean", "sum"))}
    if d.chance(40):
        options["weights"] = floats(d, batch, n, tame=True)
    return Sample("", (floats(d, batch, n, width, dtype=d.pick(FLOATS), most=18),
                       index(d, (batch, n), groups, d.pick(INDEX)), groups), options)


def pool_span(d: Draws) -> Sample:
    batch, width, window, ceil = d.size(2, 0), d.size(20, 0), d.between(1, 5), d.chance(50)
    options: dict = {"ceil": ceil}
    if d.chance(50):
        options["window_width"] = d.pick((0, d.between(1, 4)))
        across = options["window_width"] or window
        columns, rows = d.size(6), d.size(6, 0)
        if not ceil:
            columns, rows = columns * across, rows * window
        options["grid_width"] = columns
        length = columns * rows
    else:
        length = d.size(30, 0) * (1 if ceil else window)
    before, after = d.size(4, 0), d.size(4, 0)
    options |= {"span_start": before, "span_len": length if after else d.pick((-1, length))}
    return Sample("", (floats(d, batch, before + length + after, width, dtype=d.pick(FLOATS)), window), options)


def _grid(d: Draws, coarse: bool) -> Sample:
    factor, columns, rows, width = d.pick((2, 1, 3, 4)), d.size(4), d.size(4, 0), d.size(12, 0)
    n, channels = (columns * rows, width * factor**2) if coarse else (columns * rows * factor**2, width)
    tokens = raw(d, d.size(2, 0), n, channels, dtype=d.pick(BYTES))
    return Sample("", (tokens, columns * factor, factor), {"order": d.pick(("window", "window_transposed", "channel"))})


def shuffle_tokens(d: Draws) -> Sample:
    return _grid(d, coarse=False)


def unshuffle_tokens(d: Draws) -> Sample:
    return _grid(d, coarse=True)


def _classes(d: Draws, batch: int, n: int) -> tuple[list[torch.Tensor], list[int]]:
    bits = [d.pick((8, 4, 2)) for _ in range(d.between(1, 3))]
    return [index(d, (batch, d.size(10, 0)), n, d.pick(INDEX), percent=15) for _ in bits], bits


def quantize_kv(d: Draws) -> Sample:
    batch, heads, n, width, dtype = d.size(2, 0), d.size(3, 0), d.size(20, 0), d.size(20, 0), d.pick(FLOATS)
    key, value = (floats(d, batch, heads, n, width, dtype=dtype) for _ in range(2))
    return Sample("", (key, value, *_classes(d, batch, n)), {})


def dequantize_kv(d: Draws) -> Sample:
    batch, heads, n, width, dtype = d.size(2, 0), d.size(3, 0), d.size(20, 0), d.size(20, 0), d.pick(FLOATS)
    indices, bits = _classes(d, batch, n)
    parts: tuple[list, ...] = ([], [], [], [], [])
    for chosen, each in zip(indices, bits, strict=True):
        count = chosen.shape[1]
        codes = [raw(d, batch, heads, count, (width * each + 7) // 8, dtype=torch.uint8) for _ in range(2)]
        params = [floats(d, *shape, tame=True).abs() for shape in
                  ((batch, heads, 2, width), (batch, heads, count, 2), (batch, heads, width))]
        for out, t in zip(parts, (codes[0], params[0], codes[1], params[1], params[2]), strict=True):
            out.append(t)
    return Sample("", (*parts, indices, bits, n), {"dtype": dtype})
