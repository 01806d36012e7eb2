"""CATP: of each in-context image what is diverse and fits its text, then what the last row turns to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..select.select_diverse import select_diverse
from ._inputs import Inputs, Result, Stage
from ._method import Info, Method, count_of, keep, keep_best, require
from ._registry import register
from .cdpruner import text_relevance


@register(Info("catp", "CATP", "AAAI 2026, arXiv 2508.07871", "selection", "decoder layer", ("hidden", "text"), "exact",
               "abstract", "query"))
@dataclass(frozen=True)
class CATP(Method):
    """Two stages for prompts with several images, such as in-context examples.

    1. Of each image a diverse subset that is aligned with its own text: greedy MAP inference for the determinantal
       point process of `r[i] cos(x_i, x_j) r[j]`, with r the mean cosine to that text.
    2. Of all images the best by `weight a + (1 - weight) r`, with a the attention from the last row of the prompt in
       a later layer less that in an earlier one, mean over heads, and r the mean cosine to all of the text.

    r and a are scaled to 0 .. 1, within the image in stage 1 and within the prompt in stage 2.

    Args:
        schedule: the two stages. A share is of each image's tokens in the first (rounded), of all original tokens in
            the second; a number is of each image in the first, of all in the second.
        weight: of the attention, 0 to 1.

    Inputs: the images are `segments` (else frames of `grid`, else one), `text` in the space of `hidden`. Stage 1:
    `text_segments`, the text of each image; without it all of the text is that of each. Stage 2: `decoder[-2]` and
    `decoder[-1]`, the earlier and the later layer, of which the last row counts; `original`. Ties go to the lower
    position, NaN ranks last.

    Source: "CATP: Contextually Adaptive Token Pruning", AAAI 2026, arXiv 2508.07871; from its abstract: the details
    are ours.
    """

    takes = ("decoder", "grid")

    schedule: tuple[Stage, Stage] = (Stage(0, 0.5), Stage(8, 0.222))
    weight: float = 0.5

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.schedule

    def run_stage(self, inputs: Inputs, stage: Stage) -> Result:
        return self._diverse(inputs, stage) if stage is self.schedule[0] else self._attended(inputs, stage)

    def _diverse(self, inputs: Inputs, stage: Stage) -> Result:
        images, text = inputs.frames, inputs.text
        assert text is not None
        texts = text.split(list(inputs.text_segments), 1) if inputs.text_segments else (text,) * len(images)
        if len(texts) != len(images):
            raise ValueError(f"catp: `inputs.text_segments` is {inputs.text_segments}, allowed: {len(images)} of them "
                             "(the images)")
        picked, start = [], 0
        for tokens, own in zip(inputs.tokens.split(list(images), 1), texts, strict=True):
            n = tokens.shape[1]
            relevance = _scaled(text_relevance(tokens, own)) + 1e-6  # above 0, so that no token is out of the question
            count = count_of("catp", stage.keep, n, n)
            _, indices = select_diverse(tokens, count, objective="dpp", relevance=relevance)
            picked.append(indices + start)
            start += n
        return keep(inputs, torch.cat(picked, 1))

    def _attended(self, inputs: Inputs, stage: Stage) -> Result:
        if len(inputs.decoder) < 2:
            require("catp", inputs, "decoder")
            raise ValueError("catp: `inputs.decoder` is of 1 layer, allowed: at least 2 (an earlier and a later one)")
        assert inputs.text is not None
        n = inputs.tokens.shape[1]
        early, late = (layer.last_rows().scores(n) for layer in inputs.decoder[-2:])
        relevance = text_relevance(inputs.tokens, inputs.text)
        scores = self.weight * _scaled(late - early) + (1 - self.weight) * _scaled(relevance)
        return keep_best(inputs, scores, count_of("catp", stage.keep, inputs.original or n, n))


def _scaled(scores: Tensor) -> Tensor:
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    return (scores - low) / (high - low).clamp_min(1e-12)
