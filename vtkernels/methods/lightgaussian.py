"""LightGaussian: Gaussians of little significance go, and most of the others share their colours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..compact.gather_tokens import gather_tokens
from ..select.cluster_kmeans import cluster_kmeans
from ..select.select_threshold import select_threshold
from ..select.select_topk import select_topk
from ._inputs import Inputs, Result
from ._method import Info, Method, count_of, keep
from ._registry import register


@register(Info("lightgaussian_prune", "LightGaussian, pruning", "NeurIPS 2024, arXiv 2311.17245", "codewords", "other",
               ("hidden", "scores"), "ragged", "code", "none"))
@dataclass(frozen=True)
class LightGaussianPrune(Method):
    """Keeps the Gaussians whose significance `(V / V_ref)^power * I` lies above a quantile of all. V is the product of
    the scales, V_ref that at place `0.9 N` of the descending volumes.

    Args:
        scales: first and last + 1 of the channels of `hidden` that hold the scales (as lengths, not their logarithms).
        prune: the quantile; what is equal to it goes too.
        power: of the volume.
        clamp: cut `V / V_ref` to at most 1; the official code does not.

    Inputs: `hidden`, the parameters of N Gaussians; `scores`, the importance I that a counting rasteriser summed over
    the rays of the training views (it is not part of this). Result: `hidden`, `indices`, `counts`: `counts` is
    `N - 1 - floor(prune * (N - 1))`, less where values are equal; `scores`, the significance. NaN is not kept.

    Source: Fan et al., "LightGaussian: Unbounded 3D Gaussian Compression with 15x Reduction and 200+ FPS", NeurIPS
    2024, arXiv 2311.17245; details as in the official code.
    """

    scales: tuple[int, int]
    prune: float = 0.66
    power: float = 0.1
    clamp: bool = False

    def run(self, inputs: Inputs) -> Result:
        assert inputs.scores is not None
        n, (first, end) = inputs.tokens.shape[1], self.scales
        if not 0 <= first < end <= inputs.tokens.shape[2]:
            raise ValueError(f"lightgaussian_prune: `scales` is {self.scales}, allowed: channels within "
                             f"{inputs.tokens.shape[2]}")
        if not 0 <= self.prune <= 1:
            raise ValueError(f"lightgaussian_prune: `prune` is {self.prune}, allowed: 0 to 1")
        volume = inputs.tokens[..., first:end].float().prod(-1)
        reference = volume.kthvalue(n - int(0.9 * n), dim=1, keepdim=True).values
        share = volume / reference
        # In float64, where the vector and the scalar power that torch mixes round to the same float32.
        weight = (share.clamp(max=1) if self.clamp else share).double() ** self.power
        significance = weight.float() * inputs.scores
        place = int(self.prune * (n - 1))
        threshold = significance.kthvalue(place + 1, dim=1).values
        indices, counts, _ = select_threshold(significance, 0.0, thresholds=threshold)
        return keep(inputs, indices[:, :n - 1 - place], counts, scores=significance)


@register(Info("lightgaussian_vq", "LightGaussian, vector quantisation", "NeurIPS 2024, arXiv 2311.17245", "codewords",
               "other", ("hidden", "scores"), "assignment", "code", "similarity"))
@dataclass(frozen=True, eq=False)
class LightGaussianVQ(Method):
    """The important Gaussians keep their colours; those of the others become codewords of a codebook that is fitted to
    them by k-means, weighted by importance.

    Args:
        codewords: of the codebook, at most N.
        exact: share of the Gaussians that stays exact (rounded), or how many: the most important ones.
        iterations: of k-means; 0 takes `codebook` as it is.
        codebook: `[K, D]` to start from; `codewords` rows of the data when absent.

    Inputs: `hidden` `[B, N, D]`, the spherical harmonics; `scores`, the significance, as `lightgaussian_prune` has it.
    Result: `assignment` `[B, N]` int64, the codeword of each Gaussian, -1 for an exact one; `hidden` `[B, N, D]`, what
    is rendered; `kv`: the codebook, `[B, K, D]` float32. Ties go to the lower position; a Gaussian with a NaN counts in
    no mean and becomes codeword 0 unless it is exact.

    The official code fits by moving averages over 1000 samples of 80000 and revives codewords that are little used;
    here every step of k-means sees all data.

    Source: Fan et al., NeurIPS 2024, arXiv 2311.17245; shares and weights as in the official code.
    """

    codewords: int = 8192
    exact: float | int = 0.4
    iterations: int = 10
    codebook: Tensor | None = None

    def run(self, inputs: Inputs) -> Result:
        assert inputs.scores is not None
        tokens, (batch, n) = inputs.tokens, inputs.tokens.shape[:2]
        best = select_topk(inputs.scores, count_of("lightgaussian_vq", self.exact, n, n))
        exact = torch.zeros(batch, n, dtype=torch.bool, device=tokens.device).scatter_(1, best, True)
        start = None if self.codebook is None else self.codebook.to(tokens.device).float().repeat(batch, 1, 1)
        codes, codebook = cluster_kmeans(tokens, min(self.codewords, n) if start is None else start.shape[1],
                                         iterations=self.iterations, initial=start,
                                         weights=inputs.scores.masked_fill(exact, 0))
        shared = gather_tokens([codebook], codes)[0].to(tokens.dtype)
        hidden = torch.where(exact[..., None], tokens, shared)
        return Result(hidden, assignment=codes.masked_fill(exact, -1), kv=(codebook,))
