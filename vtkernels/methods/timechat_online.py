"""TimeChat-Online: drop the tokens that did not change since the frame before."""

from dataclasses import dataclass

from ..score.temporal_scores import temporal_scores
from ..select.select_threshold import select_threshold
from ..select.select_topk import select_topk
from ._inputs import Inputs, Result
from ._method import Info, Method, keep, require
from ._registry import register


@register(Info("timechat_online", "TimeChat-Online (DTD)", "ACM MM 2025, arXiv 2504.17343", "selection", "projector",
               ("hidden", "grid"), "ragged", "code", "similarity"))
@dataclass(frozen=True)
class TimeChatOnline(Method):
    """Differential token drop: each token is compared with the same place of the previous frame, dropped or not. The
    first frame stays whole.

    - `level="feature"`: drop where `cos(x[t, j], x[t-1, j])` is `threshold` or more.
    - `level="pixel"`: drop where the mean `|p[t, j] - p[t-1, j]|` over the patch is `threshold` or less.

    Args:
        threshold: of the similarity or difference; with `relative` the share to drop.
        level: "feature" or "pixel".
        relative: drop the `int(threshold * M)` tokens that changed least, of the M after the first frame.

    Inputs: `hidden` and `grid`; `pixels` for the pixel level. `positions` stay those of the kept tokens. A NaN score
    is dropped (`relative`: ranks last), ties go to the lower position. The official code keeps a score equal to the
    threshold, and compares the first sub-frame of the previous patch with the last of the current one.

    Source: Yao et al., "TimeChat-Online: 80% Visual Tokens are Naturally Redundant in Streaming Videos", ACM MM 2025,
    arXiv 2504.17343; details as in the official code.
    """

    threshold: float = 0.5
    level: str = "feature"
    relative: bool = False

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        frames, n = inputs.grid[0], inputs.grid[1] * inputs.grid[2]
        pixel = self.level == "pixel"
        if pixel:
            require("timechat_online", inputs, "pixels")
            assert inputs.pixels is not None
            patches = inputs.pixels.flatten(2)
            scores = temporal_scores(patches.unflatten(1, (frames, n)), metric="l1").flatten(1) / patches.shape[2]
        elif self.level == "feature":
            scores = temporal_scores(inputs.tokens.unflatten(1, (frames, n))).flatten(1)
        else:
            raise ValueError(f"timechat_online: `level` is {self.level!r}, allowed: 'feature' or 'pixel'")
        if not self.relative:
            indices, counts, _ = select_threshold(scores, self.threshold, largest=pixel)
            return keep(inputs, indices, counts, scores)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"timechat_online: `threshold` is {self.threshold}, allowed: a share from 0.0 to 1.0")
        dropped = int(self.threshold * (frames - 1) * n)
        return keep(inputs, select_topk(scores, frames * n - dropped, largest=pixel), scores=scores)
