"""PATNet: channels are weighed by their mean and spread over the picture."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("patnet", "PATNet, channel gate", "arXiv 2503.03148", "other", "other", ("hidden",), "other", "code",
               "none"))
@dataclass(frozen=True, eq=False)
class PATNet(Method):
    """Partial channel attention: with the mean and the standard deviation (unbiased) of a channel over the tokens,
    `x_c * hardsigmoid(w_c0 mean_c + w_c1 std_c + b_c)`, for the last channels only.

    Args:
        weight: `[C, 2]` of the last C channels, with the batch norm of inference multiplied in.
        bias: `[C]`, likewise.

    Inputs: `hidden` `[B, N, D]`, N > 1, C of its D channels gated; the others, a quarter in the published models, go
    through a 3 x 3 convolution of the model's and are passed on as they are. Result: `hidden` `[B, N, D]`, before the
    batch norm that follows. A NaN reaches its own channel in its own row. Channels are what is redundant here: no token
    is dropped.

    Source: Huang et al., "Partial Convolution Meets Visual Attention", arXiv 2503.03148; details as in the official
    code.
    """

    kernels = False

    weight: Tensor
    bias: Tensor

    def run(self, inputs: Inputs) -> Result:
        first = inputs.tokens.shape[2] - self.weight.shape[0]
        if first < 0 or inputs.tokens.shape[1] < 2:
            raise ValueError(f"patnet: `inputs.hidden` is of shape {tuple(inputs.tokens.shape)}, allowed: 2 tokens and "
                             f"{self.weight.shape[0]} channels at least")
        passed, gated = inputs.tokens.tensor_split([first], 2)
        std, mean = torch.std_mean(gated.float(), 1)  # [B, C]
        gate = F.hardsigmoid(self.weight[:, 0] * mean + self.weight[:, 1] * std + self.bias)
        return Result(torch.cat([passed, gated * gate[:, None].to(gated.dtype)], 2))
