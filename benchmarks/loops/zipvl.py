"""ZipVL with the probe's stored attention matrix, a sort with a cumulated sum, and packing head by head."""

from typing import Any

import torch
from torch import Tensor

from vtkernels.methods import Inputs, Result

from . import attention, probabilities, stack

VARIANTS = {"evict": {}, "half": {"tau": 0.5}, "quantise": {"tau": 0.7, "bits": (4, 2)},
            "bytes": {"tau": 0.6, "bits": (8, 4), "quirk_visibility": True},
            "quirk": {"tau": 0.8, "quirk_visibility": True}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    keys, heads, kv_heads, rows = {"small": (48, 4, 2, 12), "odd": (53, 6, 2, 9), "typical": (4096, 32, 8, 256)}[size]
    head = {"small": 8, "odd": 10, "typical": 128}[size]
    return Inputs(decoder=(attention(batch, heads, kv_heads, rows, keys, head, generator, causal=True),))


def quantise(x: Tensor, dim: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Levels with the smallest value and the step of each group along `dim`."""
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    step = (high - low) / (2**bits - 1)
    return ((x - low) / step + 0.5).floor().long(), low.squeeze(dim), step.squeeze(dim)


def pack(levels: Tensor, bits: int) -> Tensor:
    rows, width = levels.shape
    length = -(-width * bits // 8)
    packed = torch.zeros(rows, length, dtype=torch.uint8)
    for i in range(width):
        packed[:, i % length] |= (levels[:, i] << (i // length * bits)).to(torch.uint8)
    return packed


def quantised_class(key: Tensor, value: Tensor, places: Tensor, bits: int) -> list[Tensor]:
    """What `quantize_kv` returns for the tokens `places` of K and V `[H, S, d]`, filled up to S rows."""
    parts: list[list[Tensor]] = [[], [], [], [], []]
    for k, v in zip(key[:, places], value[:, places], strict=True):
        levels, low, step = quantise(k, 0, bits)
        scale = v.abs().amax(0).sqrt()
        value_levels, value_low, value_step = quantise(v / scale, 1, bits)
        rows = (pack(levels, bits), torch.stack([low, step]), pack(value_levels, bits),
                torch.stack([value_low, value_step], 1), scale)
        for out, t in zip(parts, rows, strict=True):
            out.append(t)
    fill = key.shape[1] - len(places)
    stacked = [torch.stack(part) for part in parts]
    return [torch.cat([t, t.new_zeros(len(t), fill, t.shape[2])], 1) if i in (0, 2, 3) else t
            for i, t in enumerate(stacked)]


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    layer, results = inputs.decoder[-1], []
    batch, _, n = layer.key.shape[:3]
    rows = layer.query.shape[2]
    for row in range(batch):
        received = probabilities(layer, row).mean(0).sum(0)
        ordered = received.sort(descending=True).values
        count = int((ordered.cumsum(0) < method.tau * received.sum()).sum().item()) + 1
        seen = torch.tensor([n - j if method.quirk_visibility else min(rows, n - j) for j in range(n)])
        scores = received / seen
        kept = scores.topk(count).indices.sort().values
        others = torch.tensor([i for i in range(n) if i not in set(kept.tolist())])
        assert layer.value is not None
        if method.bits is None:
            kv = [torch.cat([t[row][:, kept], t.new_zeros(t.shape[1], n - count, t.shape[3])], 1)
                  for t in (layer.key, layer.value)]
        else:
            classes = [quantised_class(layer.key[row], layer.value[row], places, bits)
                       for places, bits in zip((kept, others), method.bits, strict=True)]
            kv = [t for pair in zip(*classes, strict=True) for t in pair]
        indices = torch.cat([kept, kept.new_full((n - count,), -1)])
        results.append(Result(indices=indices[None], counts=torch.tensor([count], dtype=torch.int32),
                              scores=scores[None], kv=tuple(t[None] for t in kv)))
    return stack(results)
