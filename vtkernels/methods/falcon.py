"""FALCON: learned registers take up each crop, talk to the other crops, and are all that goes on."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attend.patterns import same_segment
from ..compact.gather_tokens import gather_tokens
from ._attend import attend, joined, linear
from ._inputs import Attention, Inputs, Result
from ._method import Info, Method
from ._registry import register


class ReAtten(nn.Module):
    """Self-attention among the registers of an image, added to them: `r + W_o MHSA(r)`, without a norm.

    Args:
        width: of the tokens; heads: of the attention, a divisor of the width.

    `forward(registers, image_ids)`: `[B, R, D]` and the image of each register, `[R]` integers; a register sees those
    of its own image.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, registers: Tensor, image_ids: Tensor) -> Tensor:
        q, k, v = (linear(registers, p.weight, p.bias).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for p in (self.query, self.key, self.value))
        mask = same_segment(image_ids.expand(registers.shape[0], -1))
        mixed = joined(attend(Attention(q, k, v), mask))
        return registers + linear(mixed, self.out.weight, self.out.bias)


@register(Info("falcon", "FALCON", "ICCV 2025, arXiv 2501.16297", "attention", "encoder", ("hidden",), "exact", "code",
               "query"))
@dataclass(frozen=True, eq=False)
class FALCON(Method):
    """The registers, which are the last tokens of every crop (ReCompact), after attention among all registers of an
    image (ReAtten).

    Args:
        registers: of each crop.
        reatten: what mixes them, called with registers `[B, crops * registers, D]` and the image of each, int64
            `[crops * registers]`: `ReAtten` with the model's weights. None: the slice alone, as after the last layer.
        images: crops of each image where a row holds several images; one image when empty.

    Inputs: `hidden`, the output of a layer's self-attention (after the last layer, its tokens), crop after crop, each
    its patches and then its registers; the tokens of a crop are those of `segments`, else of the frames of `grid`.
    Result: `hidden` and `indices`, where the registers stand: within the encoder, write them back with
    `tokens.scatter(1, indices[..., None].expand_as(hidden), hidden)` before the residual. NaN reaches the registers of
    its own row.

    Source: Zhang et al., "FALCON: Resolving Visual Redundancy and Fragmentation in High-resolution Multimodal Large
    Language Models via Visual Registers", ICCV 2025, arXiv 2501.16297; details as in the official code, which pads
    images to equal counts.
    """

    registers: int = 64
    reatten: nn.Module | None = None
    images: tuple[int, ...] = ()

    def run(self, inputs: Inputs) -> Result:
        tokens, crops = inputs.tokens, inputs.frames
        images = self.images or (len(crops),)
        if min(crops) < self.registers or self.registers < 1:
            raise ValueError(f"falcon: `registers` is {self.registers}, allowed: 1 to {min(crops)} (the tokens of the "
                             "smallest crop)")
        if sum(images) != len(crops):
            raise ValueError(f"falcon: `images` is {images}, allowed: a sum of {len(crops)} (the crops)")
        device, end, places = tokens.device, 0, []
        for size in crops:
            end += size
            places.append(torch.arange(end - self.registers, end, device=device))
        indices = torch.cat(places).repeat(tokens.shape[0], 1)
        (hidden,) = gather_tokens([tokens], indices)
        if self.reatten is not None:
            ids = torch.cat([torch.full((crop * self.registers,), i, device=device) for i, crop in enumerate(images)])
            hidden = self.reatten(hidden, ids)
        return Result(hidden, indices)
