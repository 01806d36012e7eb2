"""PT-DiT: one proxy for the tokens of each window of a video."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..compact.pool_span import pool_span
from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("pt_dit", "PT-DiT", "ICLR 2025, arXiv 2409.04005", "merging", "other", ("hidden", "grid"), "merged",
               "abstract", "transformation"))
@dataclass(frozen=True)
class PTDiT(Method):
    """The proxy of each window of `frames x rows x columns` tokens is their mean. Attention among the few proxies
    stands for attention among all tokens, which then read the proxies by cross-attention: `x + inject(x, attend(p))`.

    Args:
        window: frames, rows and columns of a window; each divides that side of `grid`.
        attend: self-attention of the proxies, `attend([B, M, D])` of the same shape, residual included where there is
            one; None: the proxies as they are.
        inject: cross-attention of all tokens to the proxies, `inject(hidden [B, N, D], proxies [B, M, D])` like
            `hidden`; None: the result is the proxies.

    Without `inject`, `hidden` is `[B, M, D]` and `assignment` the proxy of each token; with it `hidden` is `[B, N, D]`.
    A NaN stays in its window, but for the modules. The window attention that follows in the block is not part of this.

    Source: Wang et al., "Qihoo-T2X: An Efficient Proxy-Tokenized Diffusion Transformer", ICLR 2025, arXiv 2409.04005;
    from its abstract and summaries: means as proxies and the injection are theirs, the default window and the exact
    means of means are ours.
    """

    window: tuple[int, int, int] = (1, 2, 2)
    attend: Callable[[Tensor], Tensor] | None = None
    inject: Callable[[Tensor, Tensor], Tensor] | None = None

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        (batch, n, _), (frames, rows, columns), (deep, high, wide) = inputs.tokens.shape, inputs.grid, self.window
        if min(self.window) < 1 or frames % deep or rows % high or columns % wide:
            raise ValueError(f"pt_dit: `window` is {self.window}, allowed: divisors of {inputs.grid} (`inputs.grid`)")
        proxies = inputs.tokens
        if deep > 1:  # a frame as one row of a grid
            proxies = pool_span(proxies, deep, window_width=1, grid_width=rows * columns)
        proxies = pool_span(proxies, high, window_width=wide, grid_width=columns)
        if self.attend is not None:
            proxies = self.attend(proxies)
        if self.inject is not None:
            return Result(inputs.tokens + self.inject(inputs.tokens, proxies))
        place = torch.arange(n // deep // high // wide, device=inputs.tokens.device)
        place = place.view(frames // deep, rows // high, columns // wide)
        for dim, size in enumerate(self.window):
            place = place.repeat_interleave(size, dim)
        return Result(proxies, assignment=place.flatten().expand(batch, -1))
