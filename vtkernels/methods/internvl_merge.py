"""InternVL's pixel shuffle: four tokens as one, through an MLP."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..compact.shuffle_tokens import shuffle_tokens
from ._inputs import Inputs, Result
from ._linear import Linear
from ._method import Info, Method
from ._registry import register


def mlp_projector(width: int, out: int, factor: int = 2) -> nn.Sequential:
    """InternVL's projector of the shuffled tokens: `W_2 gelu(W_1 LN(x))` from `factor^2 * width` to `out` channels."""
    channels = width * factor**2
    return nn.Sequential(nn.LayerNorm(channels), Linear(channels, out), nn.GELU(), Linear(out, out))


@register(Info("internvl_merge", "InternVL pixel shuffle", "CVPR 2024, arXiv 2404.16821", "merging", "projector",
               ("hidden", "grid"), "merged", "paper", "transformation"))
@dataclass(frozen=True)
class InternVLMerge(Method):
    """Space to depth: the tokens of each `factor x factor` window stand side by side in the channels of one token,
    which an MLP projects to the language model.

    Args:
        project: `project([B, N / factor^2, D factor^2]) -> [B, N / factor^2, out]`, such as `mlp_projector(D, out)`.
        factor: tokens on a side of a window, the reciprocal of the published `downsample_ratio`.
        quirk_transposed: windows of a tile column by column, as `ps_version` v1 does; v2, the default, has them in
            raster order.

    The frames of `grid` are tiles; their sides are multiples of the factor. A NaN stays in its window.

    Source: Chen et al., "How Far Are We to GPT-4V?", InternVL 1.5, arXiv 2404.16821; details as in the paper.
    """

    project: Callable[[Tensor], Tensor]
    factor: int = 2
    quirk_transposed: bool = False

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        tiles, _, columns = inputs.grid
        tokens = inputs.tokens.unflatten(1, (tiles, -1)).flatten(0, 1)
        order = "window_transposed" if self.quirk_transposed else "window"
        merged = shuffle_tokens(tokens, columns, self.factor, order=order)
        return Result(self.project(merged.unflatten(0, (-1, tiles)).flatten(1, 2)))
