"""IndexMark: a watermark of codewords that were exchanged for their near twins."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..score.prototype_scores import prototype_scores
from ..score.prototype_topm import prototype_topm
from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("indexmark", "IndexMark", "arXiv 2505.14673", "codewords", "other", ("hidden", "scores"), "assignment",
               "code", "similarity"))
@dataclass(frozen=True, eq=False)
class IndexMark(Method):
    """Codewords come in pairs, one red and one green. After generation, each red token whose log-ratio
    `log10(p(token) / p(partner))` is at most a percentile of the image's ratios becomes its green partner.

    Args:
        codebook: `[K, d]`.
        partner: `[K]` int64, the other codeword of the pair, from `pair_codewords`.
        green: `[K]` bool, the green one of each pair, from `pair_codewords`.
        percentile: 0 to 100, linear between ratios; ratios that are not finite do not count.

    Inputs: `hidden` `[B, N, d]`, the codewords of the generated image (their codes are found by cosine); `scores`, the
    log-ratios. Result: `assignment` `[B, N]` int64, the codes after the exchange; `hidden`, their codewords; `scores`,
    the ratios. A NaN ratio never exchanges, -inf does. The percentile is of each image by itself; the official code
    takes that of the batch.

    Source: "Training-Free Watermarking for Autoregressive Image Generation", arXiv 2505.14673; details as in the
    official code.
    """

    codebook: Tensor
    partner: Tensor
    green: Tensor
    percentile: float

    def run(self, inputs: Inputs) -> Result:
        assert inputs.scores is not None
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"indexmark: `percentile` is {self.percentile}, allowed: 0 to 100")
        codebook, ratios = self.codebook.to(inputs.tokens), inputs.scores
        _, codes = prototype_scores(inputs.tokens, codebook)
        finite = ratios.masked_fill(~ratios.isfinite(), torch.nan)
        threshold = finite.nanquantile(self.percentile / 100, dim=1, keepdim=True)
        exchange = ~self.green[codes] & (ratios <= threshold)
        codes = torch.where(exchange, self.partner[codes], codes)
        return Result(codebook[codes], assignment=codes, scores=ratios)


def pair_codewords(codebook: Tensor, neighbours: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pair the codewords by cosine, greedily: the most similar free pair first. Once per codebook, on the CPU.

    Candidates are the pairs of a codeword and one of its `neighbours` nearest. Codewords that stay free are paired by
    the same rule among themselves, until at most one is left, which is its own partner and green. Equal cosines go to
    the lower codewords. The published matching is one of maximum weight; the greedy one is in its code too.

    Args:
        codebook: `[K, d]`, any device.
        neighbours: candidates of each codeword.
        seed: of the coins that make one codeword of each pair green.

    Returns:
        partner: `[K]` int64. green: `[K]` bool. Both on the device of the codebook.
    """
    rows = codebook.detach().cpu().float()
    count = rows.shape[0]
    partner = torch.arange(count)
    free = partner
    while len(free) > 1:
        nearest = min(neighbours + 1, len(free))  # a codeword is its own neighbour
        cosines, places = prototype_topm(rows[free], rows[free], nearest)
        pairs = torch.stack([free[:, None].expand_as(places), free[places]], -1).flatten(0, 1)
        order = torch.argsort(cosines.flatten(), descending=True, stable=True)
        taken = [False] * count
        for a, b in pairs[order].tolist():
            if a != b and not taken[a] and not taken[b]:
                taken[a] = taken[b] = True
                partner[a], partner[b] = b, a
        left = free[~torch.tensor(taken)[free]]
        if len(left) == len(free):
            neighbours *= 2  # equal codewords crowd each other out
        free = left
    coin = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    first = torch.arange(count) <= partner
    green = torch.where(first, coin, ~coin[partner]) | (partner == torch.arange(count))
    return partner.to(codebook.device), green.to(codebook.device)


def green_share(codes: Tensor, green: Tensor) -> Tensor:
    """`[B]` float32: the share of green codes `[B, N]`, near 0.5 without a watermark.

    To verify an image, encode it, take its codes (`prototype_scores`) and compare the share with what chance gives.
    """
    return green[codes].float().mean(1)
