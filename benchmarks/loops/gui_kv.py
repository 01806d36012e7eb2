"""GUI-KV with the window's stored attention matrix and the QR of all keys of the last image."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import attention, stack
from .snapkv import compact, votes

VARIANTS = {"default": {"keep": 0.4, "window": 5, "rank": 3},
            "class": {"keep": 20, "alpha": 0.1, "temperature": 1.0, "rank": 6},
            "quirk": {"keep": 0.5, "window": 3, "rank": 4, "quirk_zeroed": True}, "full": {"keep": 1.0}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """Three screenshots with text between them; two of different sizes for "odd"."""
    keys, heads, kv_heads, width, spans = {
        "small": (60, 4, 2, 16, ((2, 14), (18, 12), (32, 18))), "odd": (53, 6, 2, 24, ((1, 11), (15, 27))),
        "typical": (4096, 28, 4, 3584, ((50, 1200), (1300, 1200), (2600, 1200)))}[size]
    layer = attention(batch, heads, kv_heads, 12, keys, 128 if size == "typical" else 8, generator, causal=True)
    return Inputs(hidden=torch.randn(batch, keys, width, generator=generator), decoder=(layer,), spans=spans)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    layer, results = inputs.decoder[-1], []
    batch, heads, keys = layer.key.shape[:3]
    count = min(keys, method.keep if isinstance(method.keep, int) else round(method.keep * keys))
    *earlier, (start, length) = inputs.spans
    for row in range(batch):
        scores = votes(method, inputs, row, method.window, "mean")
        norms = inputs.tokens[row, start:start + length].norm(dim=1)
        saliency = ((norms - norms.mean()) / norms.std() / method.temperature).softmax(0)
        scores[:, start:start + length] += method.alpha * saliency
        places = [i for s, n in earlier for i in range(s, s + n)]
        best = []
        for head in range(heads):
            last = layer.key[row, head, start:start + length]
            q = torch.linalg.qr(last.T)[0][:, :method.rank]
            old = layer.key[row, head, places]
            residual = (old - old @ q @ q.T).norm(dim=1)
            drop = residual.topk(int((1 - count / keys) * len(places)), largest=False).indices
            scores[head, torch.tensor(places)[drop]] = 0.0 if method.quirk_zeroed else -torch.inf
            chosen = scores[head].topk(count - method.window).indices.sort().values
            best.append(torch.cat([chosen, torch.arange(keys - method.window, keys)]))
        results.append(compact(layer, row, best))
    return stack(results)
