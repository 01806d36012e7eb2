"""ProMoE: tokens are routed to experts by the cosine with a prototype of each expert."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..compact.gather_tokens import gather_tokens
from ..compact.merge_tokens import merge_tokens
from ..score.prototype_topm import prototype_topm
from ..select.select_topk import select_topk
from ._inputs import Inputs, Result
from ._method import Info, Method, count_of
from ._registry import register

GATES = ("identity", "softmax", "sigmoid")


@register(Info("promoe_token", "ProMoE, token choice", "ICLR 2026, arXiv 2510.24711", "codewords", "other", ("hidden",),
               "assignment", "code", "similarity"))
@dataclass(frozen=True, eq=False)
class ProMoEToken(Method):
    """Each token chooses the `top` experts with the largest cosine `s_e = <x, c_e> / (|x| |c_e|)`.

    Args:
        prototypes: `[E, D]`, one per expert.
        top: experts of a token.
        gate: the weight of an expert's output: `"identity"` is `s_e`, `"sigmoid"` that of `s_e`, `"softmax"` that of s
            over all E experts. The weights of several experts are not normalised again.

    Inputs: `hidden` of rows with a class label; rows without one go to ProMoE's unconditional expert with weight 1, and
    need no routing. Result: `assignment` `[B, N, top]` int64 experts, best first; `scores` `[B, N, top]` float32, the
    gates; `hidden` `[B, E, D]`, the mean of each expert's tokens, which the routing's contrastive loss compares with
    the prototypes, zeros for none; `sizes` `[B, E]`, how many they are. The experts themselves are the model's. Ties go
    to the lower expert; a token with a NaN has NaN gates and spoils the means of its experts in its own row only.

    Source: Wei et al., "Routing Matters in MoE: Scaling Diffusion Transformers with Explicit Routing Guidance", ICLR
    2026, arXiv 2510.24711; details as in the official code.
    """

    prototypes: Tensor
    top: int = 1
    gate: str = "identity"

    def run(self, inputs: Inputs) -> Result:
        tokens, experts = inputs.tokens, self.prototypes.shape[0]
        if self.gate not in GATES:
            raise ValueError(f"promoe_token: `gate` is {self.gate!r}, allowed: {', '.join(GATES)}")
        if not 1 <= self.top <= experts:
            raise ValueError(f"promoe_token: `top` is {self.top}, allowed: 1 to {experts} (the experts)")
        m = experts if self.gate == "softmax" else self.top
        gates, chosen = prototype_topm(tokens, self.prototypes.to(tokens), m)
        if self.gate != "identity":
            # The sigmoid in float64, where the vector and the scalar code that torch mixes round to the same float32.
            gates = gates.softmax(-1) if self.gate == "softmax" else gates.double().sigmoid().float()
        gates, chosen = gates[..., :self.top], chosen[..., :self.top]
        copies = tokens[:, :, None].expand(-1, -1, self.top, -1).flatten(1, 2)
        means, sizes = merge_tokens(copies, chosen.flatten(1), experts)
        return Result(means, assignment=chosen, sizes=sizes, scores=gates)


@register(Info("promoe_expert", "ProMoE, expert choice", "ICLR 2026, arXiv 2510.24711", "codewords", "other",
               ("hidden",), "assignment", "code", "similarity"))
@dataclass(frozen=True, eq=False)
class ProMoEExpert(Method):
    """Each expert chooses the tokens of a row with the largest cosine to its prototype. All experts get equally many; a
    token may be chosen by several, or by none.

    Args:
        prototypes: `[E, D]`, one per expert.
        capacity: tokens of an expert, as a share of the row (rounded) or a number.

    Inputs: `hidden`. Result: `indices` `[B, E, capacity]`, ascending; `hidden` `[B, E * capacity, D]`, the tokens
    expert after expert, ready for a batched product; `scores` `[B, E, N]` float32, the cosines. Ties go to the lower
    position, NaN ranks last.

    Source: Wei et al., ICLR 2026, arXiv 2510.24711; details as in the official code.
    """

    prototypes: Tensor
    capacity: float | int

    def run(self, inputs: Inputs) -> Result:
        tokens, (batch, n) = inputs.tokens, inputs.tokens.shape[:2]
        experts = self.prototypes.shape[0]
        ranked, order = prototype_topm(tokens, self.prototypes.to(tokens), experts)
        scores = torch.empty_like(ranked).scatter_(2, order, ranked).transpose(1, 2).contiguous()  # [B, E, N]
        chosen = select_topk(scores.flatten(0, 1), count_of("promoe_expert", self.capacity, n, n))
        indices = chosen.unflatten(0, (batch, experts))
        return Result(gather_tokens([tokens], indices.flatten(1))[0], indices, scores=scores)
