"""Token-Shuffle: a window of tokens as one token of the same width, and back."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..compact.shuffle_tokens import shuffle_tokens
from ..compact.unshuffle_tokens import unshuffle_tokens
from ._inputs import Inputs, Result
from ._linear import Linear
from ._method import Info, Method
from ._registry import register


class ResidualMLP(nn.Module):
    """`x + W_2 gelu(W_1 LN(x))`, a few times: the blocks that mix the tokens of a window."""

    def __init__(self, width: int, blocks: int = 2, expansion: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), Linear(width, expansion * width), nn.GELU(),
                          Linear(expansion * width, width)) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


@register(Info("token_shuffle", "Token-Shuffle", "arXiv 2504.17789", "merging", "other", ("hidden", "grid"), "merged",
               "paper", "transformation"))
@dataclass(frozen=True)
class TokenShuffle(Method):
    """`y = mix(shuffle(W x))`: each token is projected to `D / factor^2` channels, the tokens of each window stand side
    by side in one token of width D, and residual MLPs mix them.

    Args:
        project: `project(hidden [B, N, D]) -> [B, N, D / factor^2]`, such as an `nn.Linear`.
        mix: `mix([B, N / factor^2, D])` of the same shape, such as a `ResidualMLP`.
        factor: tokens on a side of a window.

    The sides of `grid` are multiples of the factor; windows in raster order. A NaN stays in its window.

    Source: Ma et al., "Token-Shuffle: Towards High-Resolution Image Generation with Autoregressive Models", arXiv
    2504.17789; the order of the steps as in the paper, whose number of blocks we do not know.
    """

    project: Callable[[Tensor], Tensor]
    mix: Callable[[Tensor], Tensor]
    factor: int = 2

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        return Result(self.mix(shuffle_tokens(self.project(inputs.tokens), inputs.grid[2], self.factor)))


@register(Info("token_unshuffle", "Token-Unshuffle", "arXiv 2504.17789", "merging", "other", ("hidden", "grid"),
               "other", "paper", "transformation"))
@dataclass(frozen=True)
class TokenUnshuffle(Method):
    """`x = W unshuffle(mix(y))`: after the transformer, residual MLPs, then the channels of each token split into its
    window, each token projected from `D / factor^2` channels to D.

    Args:
        project: `project([B, N factor^2, D / factor^2]) -> [B, N factor^2, D]`, such as an `nn.Linear`.
        mix: `mix(hidden [B, N, D])` of the same shape, such as a `ResidualMLP`.
        factor: tokens on a side of a window.

    `grid` is that of the shuffled tokens; the result is `factor` times as high and wide, in raster order. A NaN stays
    in its window.

    Source: Ma et al., "Token-Shuffle: Towards High-Resolution Image Generation with Autoregressive Models", arXiv
    2504.17789; the order of the steps as in the paper, whose number of blocks we do not know.
    """

    project: Callable[[Tensor], Tensor]
    mix: Callable[[Tensor], Tensor]
    factor: int = 2

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        columns = inputs.grid[2] * self.factor
        return Result(self.project(unshuffle_tokens(self.mix(inputs.tokens), columns, self.factor)))
