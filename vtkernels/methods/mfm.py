"""MFM: the low or the high frequencies of a picture, for masked frequency modelling."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("mfm", "MFM, frequency mask", "ICLR 2023, arXiv 2206.07706", "other", "other", ("pixels", "grid"),
               "other", "code", "transformation"))
@dataclass(frozen=True)
class MFM(Method):
    """What the encoder sees in pre-training: the picture without the frequencies outside (or inside) a disc,
    `clamp(Re(iFFT2(mask * FFT2(picture))), 0, 1)`. Every patch stays a token.

    Args:
        radius: of the disc, in frequencies around zero; a frequency at this distance is inside.
        low: keep what is inside, else what is outside. In training a coin says which, for each picture.

    Inputs: `pixels` and `grid` of one frame. Result: `hidden` `[B, N, channels * height * width]`, the pixels of the
    filtered patches, in float32. A NaN reaches the patches of its own picture.

    This is a recipe for training, and drops no token; the loss, `|FFT2(prediction) - FFT2(picture)|` over the masked
    frequencies, is a line of torch.

    Source: Xie et al., "Masked Frequency Modeling for Self-Supervised Visual Pre-Training", ICLR 2023, arXiv
    2206.07706; details as in the official code.
    """

    kernels = False

    radius: float = 16.0
    low: bool = True

    def run(self, inputs: Inputs) -> Result:
        assert inputs.pixels is not None
        assert inputs.grid is not None
        frames, rows, columns = inputs.grid
        if frames != 1 or rows * columns != inputs.pixels.shape[1]:
            raise ValueError(f"mfm: `inputs.grid` is {inputs.grid}, allowed: (1, rows, columns) of "
                             f"{inputs.pixels.shape[1]} patches")
        height, width = inputs.pixels.shape[3:]
        patches = inputs.pixels.float().unflatten(1, (rows, columns))
        picture = patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # [B, channels, H, W]
        mask = disc(rows * height, columns * width, self.radius, picture.device)
        spectrum = torch.fft.fft2(picture) * (mask if self.low else ~mask)
        filtered = torch.fft.ifft2(spectrum).real.clamp(0, 1)
        cut = filtered.unflatten(3, (columns, width)).unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5)
        return Result(cut.flatten(3).flatten(1, 2))


def disc(height: int, width: int, radius: float, device: torch.device | None = None) -> Tensor:
    """`[height, width]` bool, in the order of `torch.fft.fft2`: frequencies at most `radius` from zero."""
    y, x = (((torch.arange(size, device=device) + size // 2) % size) - size // 2 for size in (height, width))
    return y[:, None] ** 2 + x**2 <= radius**2
