"""FAR and FlexRoPE: frames attend to themselves and to earlier ones, which fade linearly."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attend.patterns import frame_causal, frame_decay
from ._attend import attend, joined, needs_all_rows
from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("far", "FAR / FlexRoPE", "arXiv 2503.19325", "attention", "other", ("hidden", "decoder"), "attention",
               "code", "none"))
@dataclass(frozen=True, eq=False)
class FAR(Method):
    """`softmax_j(scale <q_i, k_j> + slope (frame_j - frame_i)) v_j` over the keys j of the frames up to that of i.

    Args:
        slope: what a frame of distance costs, at least 0 to let earlier frames fade; one number, or `[Hq]` on the
            device, one per head. 0 is FAR without FlexRoPE, the default of the code.

    Inputs: `decoder[-1]` with the N tokens of the video as rows; their frames are those of `grid`, or `segments` where
    the frames differ, as FAR's coarse context frames (patches of 4) and fine recent ones (patches of 1) do.
    Result: `hidden` `[B, N, Hq * dv]`, `mask_mod`, `score_mod`. A NaN may reach every token of its own row.

    The official code names no FlexRoPE; its linear bias is what fits the description.

    Source: Gu et al., "Long-Context Autoregressive Video Modeling with Next-Frame Prediction", arXiv 2503.19325;
    details as in the official code.
    """

    kernels = False

    slope: float | Tensor = 0.0

    def run(self, inputs: Inputs) -> Result:
        batch, n = inputs.tokens.shape[:2]
        layer = needs_all_rows("far", "decoder", inputs.decoder[-1], n)
        device = inputs.tokens.device
        ids = torch.cat([torch.full((size,), t, device=device) for t, size in enumerate(inputs.frames)])
        ids = ids.expand(batch, n)
        mask, decay = frame_causal(ids), frame_decay(ids, self.slope)
        return Result(joined(attend(layer, mask, decay)), mask_mod=mask, score_mod=decay)
