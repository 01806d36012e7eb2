"""PVC: an image is a video that stands still; each repeat adds what the last one lacked, then windows become tokens."""

from dataclasses import dataclass, replace

from torch import Tensor

from ..attend.patterns import temporal_column
from ..compact.shuffle_tokens import shuffle_tokens
from ._attend import attend, joined, needs_all_rows
from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("pvc_attention", "PVC, temporal attention", "CVPR 2025, arXiv 2412.09613", "attention", "encoder",
               ("hidden", "vision", "grid"), "attention", "abstract", "transformation"))
@dataclass(frozen=True)
class PVCAttention(Method):
    """Causal attention over time, for each place of the frame by itself: token i of frame t sees token i of the frames
    up to t.

    Inputs: `vision[-1]` with all N tokens as rows; `grid` of T frames (an image is repeated, 4 times in the paper).
    Result: `hidden` `[B, N, Hq * dv]`, and the pattern as `mask_mod` for attention over the whole sequence. The layers'
    modulation by the frame's number (AdaLN) is the model's. A NaN may reach all frames of its own row and place.

    Source: Yang et al., "PVC: Progressive Visual Token Compression for Unified Image and Video Processing in Large
    Vision-Language Models", CVPR 2025, arXiv 2412.09613; the abstract only, the details are ours.
    """

    kernels = False

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        frames, places = inputs.grid[0], inputs.grid[1] * inputs.grid[2]
        layer = needs_all_rows("pvc_attention", "vision", inputs.vision[-1], inputs.tokens.shape[1])
        batch = layer.query.shape[0]

        def columns(t: Tensor) -> Tensor:
            """`[B, H, T * P, d]` as `[B * P, H, T, d]`."""
            return t.unflatten(2, (frames, places)).permute(0, 3, 1, 2, 4).flatten(0, 1)

        assert layer.value is not None
        short = replace(layer, query=columns(layer.query), key=columns(layer.key), value=columns(layer.value))
        out = joined(attend(short, lambda b, h, q, k: k <= q))  # [B * P, T, H * dv]
        hidden = out.unflatten(0, (batch, places)).transpose(1, 2).flatten(1, 2)
        return Result(hidden, mask_mod=temporal_column(places))


@register(Info("pvc_shuffle", "PVC, token shuffle", "CVPR 2025, arXiv 2412.09613", "attention", "projector",
               ("hidden", "grid"), "other", "abstract", "transformation"))
@dataclass(frozen=True)
class PVCShuffle(Method):
    """Space to depth in every frame: `factor` x `factor` tokens side by side become one, for the projector's MLP.

    Args:
        factor: tokens on a side of a window; 4 makes 64 tokens of a frame of 32 x 32.

    Inputs: `hidden` and `grid`, whose rows and columns `factor` divides. Result: `hidden`
    `[B, N / factor**2, D * factor**2]`, moved byte for byte; the channels are those of `shuffle_tokens`.

    Source: Yang et al., CVPR 2025, arXiv 2412.09613; the abstract only, the details are ours, the order of the channels
    that of InternVL, on which PVC stands.
    """

    factor: int = 4

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        frames, _, width = inputs.grid
        one = inputs.tokens.unflatten(1, (frames, -1)).flatten(0, 1)
        return Result(shuffle_tokens(one, width, self.factor).unflatten(0, (-1, frames)).flatten(1, 2))
