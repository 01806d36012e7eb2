"""SparseVLM: words that matter rate the visual tokens, and what is dropped lives on in a few."""

from dataclasses import dataclass, replace

from torch import Tensor

from ..compact.gather_tokens import gather_tokens
from ..compact.merge_tokens import merge_tokens
from ..score.attention_scores import attention_scores
from ..select.cluster_density_peaks import cluster_density_peaks
from ..select.select_topk import select_topk
from ._inputs import Attention, Inputs, Result, Stage
from ._join import join, mask_of
from ._method import Info, Method, count_of, keep_best, require
from ._registry import register


@register(Info("sparsevlm", "SparseVLM", "ICML 2025, arXiv 2410.04417", "selection", "decoder layer",
               ("hidden", "decoder"), "merged", "code", "query"))
@dataclass(frozen=True)
class SparseVLM(Method):
    """The attention that each visual token gets from the raters, mean over raters and heads; the best stay, and of the
    dropped ones the best 30 % are clustered (DPC-KNN), each cluster going on as its mean.

    Raters are the text tokens t with `mean_v softmax_t(<x_v, y_t>)` above the mean over t, by the embeddings that go
    into the first layer: `raters(inputs)` gives them as `row_weights` for the attention of every stage.

    Args:
        layers: decoder layers after which a stage acts.
        keep: what each stage keeps: how many, or a share of the original tokens (rounded). 192 tokens on average are
            (300, 200, 110), 128 are (303, 110, 36), 96 are (238, 48, 26), 64 are (66, 30, 17).
        recycle: cluster what is dropped; False in version 2.
        neighbours: of the density; None: as many as clusters, as in the official code.
        heads: only this many heads count, those whose raters look most at visual tokens; 14 in version 2, None: all.
        appended: recycled tokens follow the kept ones, as published; `indices` is then None, as their places do not
            ascend. Otherwise they stand where the centre of their cluster stood.

    Inputs: `decoder[-1]`, its last rows those of the text. Without `row_weights` there the raters are chosen from
    `hidden` and `text` as they are. Where there are no raters (all words equal), all scores are 0. The official code
    numbers the positions of version 1 anew; version 2 keeps the ids. Version 2 also divides the attention by a prior of
    the positions, which is not part of this. Ties go to the lower position, NaN ranks last.

    Source: Zhang et al., ICML 2025, arXiv 2410.04417; details as in the official code.
    """

    takes = ("text",)

    layers: tuple[int, ...] = (2, 6, 15)
    keep: tuple[float | int, ...] = (300, 200, 110)
    recycle: bool = True
    neighbours: int | None = None
    heads: int | None = None
    appended: bool = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(Stage(layer, keep) for layer, keep in zip(self.layers, self.keep, strict=True))

    @staticmethod
    def raters(inputs: Inputs) -> Tensor:
        """`[B, T]` float32, 1 for each rater of the text, from the embeddings of image and text."""
        require("sparsevlm", inputs, "hidden", "text")
        assert inputs.text is not None
        relation = attention_scores(inputs.tokens[:, None], inputs.text[:, None], scale=1.0)
        return (relation > relation.mean(1, keepdim=True)).float()

    def run_stage(self, inputs: Inputs, stage: Stage) -> Result:
        n, attention = inputs.tokens.shape[1], inputs.decoder[-1]
        if attention.row_weights is None:
            raters = self.raters(inputs)
            attention = replace(attention.last_rows(raters.shape[1]), row_weights=raters)
        scores = self._scores(attention, n)
        count = count_of("sparsevlm", stage.keep, inputs.original or n, n)
        if not self.recycle or count == n:
            return keep_best(inputs, scores, count)
        return self._recycled(inputs, scores, select_topk(scores, count))

    def _scores(self, attention: Attention, n: int) -> Tensor:
        if self.heads is None:
            return attention.scores(n)
        per_head = attention.scores(n, reduce_heads="none")
        best = select_topk(per_head.sum(-1), min(self.heads, per_head.shape[1]))
        return gather_tokens([per_head], best)[0].mean(1)

    def _recycled(self, inputs: Inputs, scores: Tensor, kept: Tensor) -> Result:
        dropped = inputs.tokens.shape[1] - kept.shape[1]
        count = min(int(0.3 * dropped) + 1, dropped)
        clusters = count // 10 + 1
        members = select_topk(scores, count, excluded=mask_of(kept, scores.shape[1]))
        tokens = gather_tokens([inputs.tokens], members)[0]
        groups, centres = cluster_density_peaks(tokens, min(clusters, count),
                                                neighbours=min(self.neighbours or clusters, count))
        merged, _ = merge_tokens(tokens, groups, centres.shape[1])
        return join(inputs, kept, merged, members.gather(1, centres), members, groups, scores=scores,
                    appended=self.appended)
