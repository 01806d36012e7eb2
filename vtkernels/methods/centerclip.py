"""CenterCLIP: the medoids of the tokens of a few frames."""

from dataclasses import dataclass

import torch

from ..compact.gather_tokens import gather_tokens
from ..compact.merge_tokens import merge_tokens
from ..select.cluster_kmedoids import cluster_kmedoids
from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("centerclip", "CenterCLIP", "SIGIR 2022, arXiv 2205.00823", "merging", "encoder", ("hidden", "grid"),
               "merged", "code", "similarity"))
@dataclass(frozen=True)
class CenterCLIP(Method):
    """k-medoids of the patch tokens of every few consecutive frames, from the deterministic start of KKZ. The medoids
    (or the means of their clusters) go on, in the order of space and time.

    Args:
        frames: consecutive frames that are clustered together; they divide the frames of `grid`.
        centres: clusters of each such segment.
        iterations: at most; it ends early where the medoids stay.
        metric: "l2" for Euclidean distances, "cosine" for one minus the cosine.
        means: the mean of each cluster in place of its medoid.

    `hidden` is without class tokens, of which the official code takes the mean over a segment. Ties go to the lower
    token; a token with a NaN or an infinity is nobody's neighbour and joins the first cluster of its segment.

    Source: Zhao et al., "CenterCLIP: Token Clustering for Efficient Text-Video Retrieval", SIGIR 2022, arXiv
    2205.00823; details as in the official code.
    """

    frames: int = 3
    centres: int = 49
    iterations: int = 100
    metric: str = "l2"
    means: bool = False

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        (batch, n, width), total = inputs.tokens.shape, inputs.grid[0]
        if self.frames < 1 or total % self.frames:
            raise ValueError(f"centerclip: `frames` is {self.frames}, allowed: a divisor of {total} (those of `grid`)")
        segments = total // self.frames
        tokens = inputs.tokens.reshape(batch * segments, n // segments, width)
        centres = min(self.centres, tokens.shape[1])
        clusters, medoids = cluster_kmedoids(tokens, centres, iterations=self.iterations, metric=self.metric)
        segment = torch.arange(segments, device=tokens.device)[:, None]
        indices = (medoids.view(batch, segments, -1) + segment * tokens.shape[1]).flatten(1)
        assignment = (clusters.view(batch, segments, -1) + segment * centres).flatten(1)
        if self.means:
            hidden, sizes = merge_tokens(inputs.tokens, assignment, segments * centres, weights=inputs.sizes)
        else:
            hidden, sizes = gather_tokens([inputs.tokens], indices)[0], None
        positions = None if inputs.positions is None else gather_tokens([inputs.positions], indices)[0]
        return Result(hidden, indices, assignment=assignment, sizes=sizes, positions=positions)
