"""Re-ttention's numerics as they are published: dense matrices with the band masked out of them."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import attention, stack

WIDE = {"sparsity": 0.2}
VARIANTS: dict[str, dict] = {"full": WIDE, "sparse": {"step": 6, **WIDE}, "refresh": {"step": 10, **WIDE},
                             "narrow": {"step": 7, "drift": 0.1, "warmup": 2}}
TYPICAL: dict = {"step": 6}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n, heads, kv, width = {"small": (40, 2, 2, 8), "odd": (51, 4, 2, 8), "typical": (1024, 16, 16, 72)}[size]
    layer = attention(batch, heads, kv, n, n, width, generator)
    residual = torch.randn(batch, n, heads * width, generator=generator)
    return Inputs(decoder=(layer,), cache=(residual, torch.rand(batch, heads, n, generator=generator)))


def loop(method: Any, inputs: Any, stage: int = 0) -> Result:
    layer, heads = inputs.decoder[-1], inputs.decoder[-1].query.shape[1]
    n, width = layer.query.shape[2:]
    order = torch.arange(n, device=layer.key.device)
    band = (order[:, None] - order).abs() <= int(method.sparsity * n) / 2
    full = method.step in range(method.warmup) or method.step in range(0, 1000, method.every)
    results = []
    for row in range(layer.query.shape[0]):
        out, residuals, shares = [], [], []
        for head in range(heads):
            group = head * layer.key.shape[1] // heads
            value = layer.value[row, group]
            exponents = (layer.query[row, head] @ layer.key[row, group].T / width**0.5).exp()
            inside = exponents * band
            sparse = inside / inside.sum(1, keepdim=True) @ value
            if full:
                rho = inside.sum(1) / exponents.sum(1)
                out.append(exponents / exponents.sum(1, keepdim=True) @ value)
                residuals.append(out[-1] - rho[:, None] * sparse)
            else:
                rho = inputs.cache[1][row, head]
                residuals.append(inputs.cache[0][row, :, head * width:(head + 1) * width])
                out.append(rho[:, None] * sparse + residuals[-1])
                rho = rho + method.drift
            shares.append(rho)
        cache = torch.cat(residuals, -1)[None], torch.stack(shares)[None]
        results.append(Result(torch.cat(out, -1)[None], kv=cache))
    return stack(results)
