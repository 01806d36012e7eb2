"""McQuic: groups of channels are quantised by codebooks of their own, level after level of what is left."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..score.prototype_scores import prototype_scores
from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("mcquic", "McQuic", "CVPR 2022, arXiv 2203.10897", "codewords", "other", ("hidden",), "assignment",
               "code", "similarity"))
@dataclass(frozen=True, eq=False)
class McQuic(Method):
    """Multi-codebook residual quantisation: at each level, group g of a token's channels becomes the codeword of the
    level's codebook g at the smallest Euclidean distance; what the codewords miss goes to the next level.

    Args:
        codebooks: for each level `[m, K, d]`, with as many groups m at all levels. Released: m = 2, K = 8192, 2048 and
            512, 128 channels.
        descend: the model's way from a level to the next, called with its tokens `[B, N, C]`, the codewords found
            `[B, N, C]` and the number of the level; returns the tokens of the next level `[B, N', C]`. In the model it
            is `head(tokens) - codewords`, then a learned layer that halves the resolution. Not used with one level.

    Inputs: `hidden` `[B, N, m * d]`. Result: `assignment` `[B, N + N' + .., m]` int64 and `hidden`
    `[B, N + N' + .., m * d]`, codes and codewords of the levels one after the other; `scores` like `assignment`, minus
    the squared distances, float32. Ties go to the lower codeword; a group with a NaN takes codeword 0. Entropy coding
    is not part of it.

    Source: Zhu et al., "Unified Multivariate Gaussian Mixture for Efficient Neural Image Compression", CVPR 2022, arXiv
    2203.10897; details as in the official code.
    """

    codebooks: tuple[Tensor, ...]
    descend: Callable[[Tensor, Tensor, int], Tensor] | None = None

    def run(self, inputs: Inputs) -> Result:
        if len(self.codebooks) > 1 and self.descend is None:
            raise ValueError(f"mcquic: `descend` is None, allowed: a callable ({len(self.codebooks)} levels)")
        tokens, levels = inputs.tokens, []
        for level, given in enumerate(self.codebooks):
            books, groups = given.to(tokens), given.shape[0]
            scores, codes = prototype_scores(tokens.unflatten(2, (groups, -1)), books, metric="l2")
            found = books[torch.arange(groups, device=codes.device), codes].flatten(2)
            levels.append((found, codes, scores))
            if level + 1 < len(self.codebooks):
                assert self.descend is not None
                tokens = self.descend(tokens, found, level)
        hidden, codes, scores = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
        return Result(hidden, assignment=codes, scores=scores)
