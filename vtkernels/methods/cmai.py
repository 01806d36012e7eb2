"""CMAI: each text token attends only to the image tokens that the text around it focuses on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attend.patterns import cross_modal_inhibition, text_focus
from ..select.select_topk import select_topk
from ._attend import attend, joined, needs_value
from ._inputs import Attention, Inputs, Result
from ._method import Info, Method, count_of
from ._registry import register


@register(Info("cmai", "CMAI", "arXiv 2411.15453", "attention", "decoder layer", ("hidden", "decoder"), "attention",
               "abstract", "attention"))
@dataclass(frozen=True)
class CMAI(Method):
    """Cross-modal attention inhibition. With A the causal attention weights, mean over heads, of the T text tokens
    after the image: `focus = A_text,text @ A_text,image`; of each row the image tokens with the largest focus stay
    visible, and the softmax runs over what is left.

    Args:
        keep: share of the image tokens that a text token goes on seeing (rounded), or how many.

    Inputs: `decoder[-1]`, whose rows are the text tokens after the image, or more of the sequence's end.
    Result: `hidden` `[B, Tq, Hq * dv]` is the attention output of the rows; `mask_mod` the pattern, in positions of the
    whole sequence. Ties of the focus go to the lower position, NaN ranks last and may reach every token of its own row.

    Source: arXiv 2411.15453 (with VMTC); the abstract only: shares, layers and the mean over heads are ours.
    """

    keep: float | int

    def run(self, inputs: Inputs) -> Result:
        batch, n = inputs.tokens.shape[:2]
        layer = needs_value("cmai", "decoder", inputs.decoder[-1])
        first = layer.start + n  # of the text after the image
        texts, rows = layer.key.shape[2] - first, layer.query.shape[2]
        if not 1 <= texts <= rows:
            raise ValueError(f"cmai: `inputs.decoder[-1]` has {rows} rows and {texts} keys after the image, allowed: "
                             "a text token at least, and a row for each")
        weights = _weights(layer.last_rows(texts))
        focus = text_focus(weights[..., first:], weights[..., layer.start:first])
        best = select_topk(focus.flatten(0, 1), count_of("cmai", self.keep, n, n)).unflatten(0, (batch, texts))
        allowed = torch.zeros_like(focus, dtype=torch.bool).scatter_(2, best, True)
        mask = cross_modal_inhibition(allowed, first, layer.start)
        return Result(joined(attend(layer, mask)), mask_mod=mask)


def _weights(layer: Attention) -> Tensor:
    """`[B, Tq, S]` float32: the causal attention weights of the rows, mean over heads."""
    (heads, rows), (kv_heads, keys) = layer.query.shape[1:3], layer.key.shape[1:3]
    query = layer.query.unflatten(1, (kv_heads, heads // kv_heads)).flatten(2, 3)  # [B, Hkv, G * Tq, d]
    scale = layer.query.shape[-1] ** -0.5 if layer.scale is None else layer.scale
    logits = (query @ layer.key.mT).float().unflatten(2, (-1, rows)) * scale
    hidden = torch.ones(rows, keys, dtype=torch.bool, device=logits.device).triu(keys - rows + 1)
    return logits.masked_fill(hidden, -torch.inf).softmax(-1).mean((1, 2))
