"""PT-DiT's proxies by reshaping, permuting and a mean over the windows."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result
from vtkernels.methods._linear import Linear

from . import on_grid, stack
from ._modules import like


class Block(nn.Module):
    """The attention that a model brings along: of the proxies, or with them as keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = self.q(x), self.k(context), self.v(context)
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


def block(seed: int, width: int = 16) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Block(width).requires_grad_(False)


VARIANTS = {"default": {}, "video": {"window": (2, 2, 3)}, "frames": {"window": (2, 1, 1)},
            "attended": {"attend": block(0)}, "injected": {"attend": block(0), "inject": block(1)}}
TYPICAL: dict = {"window": (4, 2, 2)}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    grid, width = {"small": ((2, 4, 6), 16), "odd": ((4, 2, 6), 16), "typical": ((16, 32, 32), 1152)}[size]
    return on_grid(batch, grid, width, generator)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    (f, h, w), (df, dh, dw), width = inputs.grid, method.window, inputs.tokens.shape[2]
    attend, inject = (module and like(module, inputs.tokens) for module in (method.attend, method.inject))
    results = []
    for tokens in inputs.tokens:
        windows = tokens.view(f // df, df, h // dh, dh, w // dw, dw, width).permute(0, 2, 4, 1, 3, 5, 6)
        proxies = windows.reshape(1, -1, df * dh * dw, width).mean(2)
        if attend:
            proxies = attend(proxies)
        if inject:
            results.append(Result(tokens[None] + inject(tokens[None], proxies)))
            continue
        number = torch.arange(proxies.shape[1]).view(f // df, 1, h // dh, 1, w // dw, 1)
        number = number.expand(f // df, df, h // dh, dh, w // dw, dw).reshape(1, -1)
        results.append(Result(proxies, assignment=number))
    return stack(results)
