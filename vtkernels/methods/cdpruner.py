"""CDPruner: a subset that is diverse and relevant to the instruction, by a determinantal point process."""

from dataclasses import dataclass

from torch import Tensor

from ..score.prototype_scores import prototype_scores
from ..select.select_diverse import select_diverse
from ._inputs import Inputs, Result
from ._method import Info, Method, count_of, keep, require
from ._registry import register


def text_relevance(tokens: Tensor, text: Tensor) -> Tensor:
    """The mean cosine of each token to the text tokens, `[B, N]` float32: as a product with the mean unit vector."""
    mean = (text.float() / text.float().norm(dim=-1, keepdim=True).clamp_min(1e-12)).mean(1)
    # One prototype per image: [N, B, D] against [B, 1, D].
    cosine, _ = prototype_scores(tokens.transpose(0, 1).float(), mean[:, None])
    return cosine.T * mean.norm(dim=-1, keepdim=True)


@register(Info("cdpruner", "CDPruner", "NeurIPS 2025, arXiv 2506.10967", "selection", "projector", ("hidden",),
               "exact", "paper", "query"))
@dataclass(frozen=True)
class CDPruner(Method):
    """Greedy MAP inference for the determinantal point process of `L[i, j] = r[i] cos(x_i, x_j) r[j]`, with r the
    relevance to the instruction, scaled to 0 .. 1 within the image.

    Args:
        keep: how many tokens stay, or their share (rounded).
        epsilon: added to the scaled relevance, so that it is above 0 everywhere.

    Inputs: `scores`, the relevance, such as the cosine of CLIP's image and text embeddings; without it, the mean
    cosine to `text`, which must then be of the space of `hidden`. Ties go to the lower position; where all relevances
    are equal they count as `epsilon`, which is plain diversity.

    Source: Zhang et al., "Beyond Attention or Similarity", NeurIPS 2025, arXiv 2506.10967; details as in the paper.
    """

    takes = ("text",)

    keep: float | int = 64
    epsilon: float = 1e-6

    def run(self, inputs: Inputs) -> Result:
        n = inputs.tokens.shape[1]
        raw = inputs.scores
        if raw is None:
            require("cdpruner", inputs, "text")
            assert inputs.text is not None
            raw = text_relevance(inputs.tokens, inputs.text)
        low, high = raw.amin(1, keepdim=True), raw.amax(1, keepdim=True)
        relevance = (raw - low) / (high - low).clamp_min(1e-12) + self.epsilon
        _, indices = select_diverse(inputs.tokens, count_of("cdpruner", self.keep, n, n), objective="dpp",
                                    relevance=relevance)
        return keep(inputs, indices, scores=relevance)
