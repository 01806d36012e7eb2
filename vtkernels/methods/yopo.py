"""YOPO: all visual tokens stay, most of the computation between them goes."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attend.patterns import neighbour_window
from ._attend import attend, joined, needs_all_rows
from ._inputs import Attention, Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("yopo", "YOPO", "arXiv 2410.06169", "attention", "decoder layer", ("hidden", "decoder", "grid"),
               "attention", "code", "none"))
@dataclass(frozen=True, eq=False)
class YOPO(Method):
    """Attention of one decoder layer in which visual tokens see their neighbours on the grid only (and both ways), and
    some heads do not look at the image at all.

    `a = softmax over the pattern`; in a cut head `a[:, visual] = 0` without renormalisation, and the output of the
    visual rows is 0.

    Args:
        window: side of the square window of neighbours, odd.
        heads: `[Hq]` bool on the device, the heads that look at the image; all when absent. `active_heads` calibrates
            them.
        cut: no head does: a layer at or after the published layer cut.

    Inputs: `decoder[-1]` with the whole sequence as rows, the N visual tokens of one image from `start`; `grid` of one
    frame. Result: `hidden` `[B, S, Hq * dv]` is the attention output of the sequence, `mask_mod` the pattern. A NaN may
    reach every token of its own row. The FFN's part is `sliced_ffn`.

    Source: Zhang et al., "Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to See", arXiv
    2410.06169; details as in the official code, which simulates all this by masks.
    """

    kernels = False

    window: int
    heads: Tensor | None = None
    cut: bool = False

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        if inputs.grid[0] != 1:
            raise ValueError(f"yopo: `inputs.grid` is {inputs.grid}, allowed: one frame, (1, rows, columns)")
        layer = needs_all_rows("yopo", "decoder", inputs.decoder[-1])
        mask = neighbour_window(layer.start, inputs.grid[1], inputs.grid[2], self.window)
        place = torch.arange(layer.key.shape[2], device=layer.key.device)
        visual = (place >= layer.start) & (place < layer.start + inputs.tokens.shape[1])
        if self.heads is None and not self.cut:
            return Result(joined(attend(layer, mask)), mask_mod=mask)
        heads = layer.query.shape[1]
        active = torch.zeros(heads, dtype=torch.bool, device=place.device) if self.cut else self.heads
        assert active is not None
        assert layer.value is not None
        off = ~active[:, None, None] & visual[:, None]  # [H, S, 1]
        # A weight of zero without renormalisation is a value of zero.
        value = layer.value.repeat_interleave(heads // layer.value.shape[1], 1).masked_fill(off, 0)
        key = layer.key.repeat_interleave(heads // layer.key.shape[1], 1)
        out = attend(replace(layer, key=key, value=value), mask).masked_fill(off, 0)
        return Result(joined(out), mask_mod=mask)


def visual_ratio(layer: Attention, count: int) -> Tensor:
    """`[B, Hq]`: the attention that each head gives to the `count` visual tokens, over what it gives to all others.

    `layer.query` holds the rows that are counted.
    """
    visual = layer.scores(count, reduce_rows="mean", reduce_heads="none").sum(-1)
    return visual / (1 - visual)


def active_heads(ratios: Tensor, threshold: float, votes: int = 40) -> Tensor:
    """`[H]` bool: the heads whose ratio (of `[samples, H]`) exceeds the threshold in more than `votes` samples.

    Published thresholds for LLaVA-1.5-13B: 0.2, 0.077 and 0.035, of 400 samples; the first two layers are never cut.
    """
    return (ratios > threshold).sum(0) > votes


def sliced_ffn(hidden: Tensor, gate: Tensor, up: Tensor, down: Tensor, start: int, count: int, ratio: int) -> Tensor:
    """The gated FFN of `hidden` `[B, S, D]`, in which the `count` visual tokens from `start` use fewer neurons.

    Args:
        gate, up: `[I, D]` weights; down: `[D, I]`.
        ratio: visual tokens use the first `I // ratio` neurons.

    Returns:
        `[B, S, D]`: `down(silu(gate x) * up x)`.
    """
    if not 1 <= ratio <= gate.shape[0]:
        raise ValueError(f"sliced_ffn: `ratio` is {ratio}, allowed: 1 to {gate.shape[0]} (the neurons)")
    few = gate.shape[0] // ratio

    def ffn(x: Tensor, n: int) -> Tensor:
        return F.linear(F.silu(F.linear(x, gate[:n])) * F.linear(x, up[:n]), down[:, :n])

    visual = ffn(hidden[:, start:start + count], few)
    before, after = ffn(hidden[:, :start], gate.shape[0]), ffn(hidden[:, start + count:], gate.shape[0])
    return torch.cat([before, visual, after], 1)
