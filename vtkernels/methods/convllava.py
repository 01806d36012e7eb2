"""ConvLLaVA's downsampling: a strided convolution as space to depth and one product."""

from dataclasses import dataclass

from torch import nn

from ..compact.shuffle_tokens import shuffle_tokens
from ._attend import linear
from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("convllava", "ConvLLaVA", "arXiv 2405.15738", "merging", "encoder", ("hidden", "grid"), "merged", "code",
               "transformation"))
@dataclass(frozen=True)
class ConvLLaVA(Method):
    """The step between two ConvNeXt stages, `conv(LN(x))` with a kernel as large as its stride (2 x 2), as the product
    of the tokens of each window with the weights of the kernel.

    Args:
        norm: layer norm over the channels of each token, or any module that keeps `[B, N, D]`.
        conv: the convolution D -> out; kernel equal to stride, square, neither padded, dilated nor grouped.

    Each such step quarters the tokens; the ConvNeXt blocks after it are not part of this. The frames of `grid` are
    images; their sides are multiples of the stride. A NaN stays in its window.

    Raises:
        ValueError: another convolution than that.

    Source: Ge et al., "ConvLLaVA: Hierarchical Backbones as Visual Encoder for Large Multimodal Models", arXiv
    2405.15738; details as in the official code.
    """

    norm: nn.Module
    conv: nn.Conv2d

    def __post_init__(self) -> None:
        sides = {*self.conv.kernel_size, *self.conv.stride}
        if len(sides) > 1 or self.conv.padding != (0, 0) or self.conv.dilation != (1, 1) or self.conv.groups != 1:
            raise ValueError(f"convllava: `conv` is {self.conv}, allowed: a square kernel equal to the stride, no "
                             "padding, dilation or groups")

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        windows = shuffle_tokens(self.norm(inputs.tokens), inputs.grid[2], self.conv.kernel_size[0], order="channel")
        return Result(linear(windows, self.conv.weight.flatten(1), self.conv.bias))
