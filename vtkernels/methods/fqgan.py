"""FQGAN: a token is quantised in parts, each by a codebook of its own."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..score.prototype_scores import prototype_scores
from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("fqgan", "FQGAN", "arXiv 2411.16681", "codewords", "other", ("hidden",), "assignment", "code",
               "similarity"))
@dataclass(frozen=True, eq=False)
class FQGAN(Method):
    """Factorised quantisation: part g of a token becomes the codeword of codebook g with the largest cosine.

    Args:
        codebooks: `[G, K, d]`, as trained; they are normalised here. The models have 2 or 3 of 16384 x 8.

    Inputs: `hidden` `[B, N, G * d]`, the outputs of the G heads side by side. Result: `assignment` `[B, N, G]` int64;
    `hidden` `[B, N, G * d]`, the unit codewords side by side, for the decoder; `scores` `[B, N, G]` float32, the
    cosines. All parts are searched in one launch, and tokens x codewords are never stored. Ties go to the lower
    codeword; a part with a NaN takes codeword 0.

    Source: Bai et al., "Factorized Visual Tokenization and Generation", arXiv 2411.16681; details as in the official
    code.
    """

    codebooks: Tensor

    def run(self, inputs: Inputs) -> Result:
        books, parts, d = self.codebooks.to(inputs.tokens), self.codebooks.shape[0], self.codebooks.shape[2]
        if inputs.tokens.shape[2] != parts * d:
            raise ValueError(f"fqgan: `inputs.hidden` has {inputs.tokens.shape[2]} channels, allowed: {parts * d} "
                             f"({parts} codebooks of {d})")
        scores, codes = prototype_scores(inputs.tokens.unflatten(2, (parts, d)), books)
        unit = F.normalize(books, dim=2)
        return Result(unit[torch.arange(parts, device=codes.device), codes].flatten(2), assignment=codes, scores=scores)
