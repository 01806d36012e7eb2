"""VMTC: keep the tokens that the CLS row looks at, and merge the others by clusters."""

from dataclasses import dataclass

import torch

from ..compact.gather_tokens import gather_tokens
from ..compact.recycle import recycle_tokens
from ..select.cluster_kmeans import cluster_kmeans
from ..select.select_topk import select_topk
from ._inputs import Inputs, Result
from ._join import join, mask_of
from ._method import Info, Method, count_of
from ._registry import register


@register(Info("vmtc", "VMTC", "arXiv 2411.15453", "merging", "projector", ("hidden", "vision"), "merged", "abstract",
               "attention"))
@dataclass(frozen=True)
class VMTC(Method):
    """The tokens with the largest importance w stay; the others are clustered by k-means under the cosine, and each
    cluster becomes `sum_i w_i x_i / sum_i w_i`. w is the attention that a token gets from the CLS row, mean over heads.

    Args:
        keep: share of the tokens that stays as it is (rounded), or how many.
        clusters: merged tokens, at most as many as are left over.
        iterations: of k-means.

    Inputs: `vision[-1]`, its query the CLS row. Tokens go on in the order of their places, a cluster at its most
    important member. `counts` is less than all only where clusters are empty, as with equal or void tokens. Ties go to
    the lower position, NaN ranks last.

    Source: arXiv 2411.15453; from its abstract and summaries: importance, cosine k-means and weighted means are theirs,
    the details (numbers, the start of k-means, the order) are ours.
    """

    keep: float | int = 128
    clusters: int = 16
    iterations: int = 10

    def run(self, inputs: Inputs) -> Result:
        n = inputs.tokens.shape[1]
        importance = inputs.vision[-1].scores(n)
        k = count_of("vmtc", self.keep, n, n)
        c = min(self.clusters, n - k)
        kept = select_topk(importance, k)
        left = select_topk(importance, n - k, excluded=mask_of(kept, n))
        tokens, weights = gather_tokens([inputs.tokens, importance], left)
        cluster, _ = cluster_kmeans(tokens, c, iterations=self.iterations, metric="cosine")
        merged, best = recycle_tokens(tokens, cluster, c, weights)
        places = torch.where(best < 0, -1, left.gather(1, best.clamp(min=0)))
        return join(inputs, kept, merged, places, left, cluster, scores=importance, appended=False, ragged=True)
