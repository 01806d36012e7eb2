"""ScaleKV: the cache of a visual autoregressive model, by a few queries of the current scale."""

from dataclasses import dataclass

import torch

from ..score.attention_scores import attention_scores
from ._cache import cache_of, check_pooling, evict, of_kv_heads, smooth
from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("scalekv", "ScaleKV", "NeurIPS 2025, arXiv 2505.19602", "cache", "KV cache", ("decoder", "grid"),
               "exact", "code", "attention"))
@dataclass(frozen=True)
class ScaleKV(Method):
    """After a layer of one scale: the centres of a `side x side` division of the current scale are observed. Each key
    scores `s_j = sum_o <q_o, k_j> / sqrt(d)` over their queries, without a softmax, then the maximum over neighbouring
    keys. Each head keeps the best keys, and those of the observed tokens, which take no part in the maximum.

    Args:
        capacity: keys that stay in each head of this layer after this scale, the observed ones included.
        side: parts of the grid in each direction.
        kernel: neighbouring keys of the maximum, odd.
        trigger: a cache of so many keys or fewer stays whole.

    The published capacities are an offline table. For 10 % of Infinity-2B, drafters (layers 0 and 23) and refiners (all
    others) hold 920 and 632, 1490 and 594, 2510 and 526, 4100 and 420 keys at scales 9 to 12, and all 465 at scale 13;
    Infinity-8B, whose drafters are layers 0 to 2, 909 and 629, 1464 and 584, 2463 and 503, 4054 and 374, then 200.

    Inputs: `grid` (1, rows, columns) of the current scale; `decoder[-1]`, its query the rows of that scale, which are
    the last of the keys and values. As there is no softmax, the queries are summed first, so the cost is that of one
    row. `indices` are `[B, H, K]`, ascending. Ties go to the lower position, NaN ranks last.

    Raises:
        ValueError: a grid that is not that of the query, or of fewer rows or columns than `side`; a capacity under
            `side^2`.

    Source: Li et al., "Memory-Efficient Visual Autoregressive Modeling with Scale-Aware KV Cache Compression", NeurIPS
    2025, arXiv 2505.19602; details as in the official code.
    """

    takes = ("grid",)

    capacity: int = 632
    side: int = 4
    kernel: int = 5
    trigger: int = 121

    def __post_init__(self) -> None:
        check_pooling("scalekv", self.kernel, "max")
        if self.capacity < self.side**2:
            raise ValueError(f"scalekv: `capacity` is {self.capacity}, allowed: at least {self.side**2} (side^2)")

    def run(self, inputs: Inputs) -> Result:
        assert inputs.grid is not None
        layer, (frames, rows, columns) = inputs.decoder[-1], inputs.grid
        cache_of("scalekv", layer)
        n, keys = layer.query.shape[2], layer.key.shape[2]
        if frames * rows * columns != n or frames != 1 or min(rows, columns) < self.side or n > keys:
            raise ValueError(f"scalekv: `inputs.grid` is {inputs.grid}, allowed: (1, rows, columns) of the {n} rows of "
                             f"`decoder[-1].query`, at most {keys}, each at least {self.side}")
        place = torch.arange(keys, device=layer.key.device)
        part = torch.arange(self.side, device=place.device)
        row, column = ((2 * part + 1) * size // (2 * self.side) for size in (rows, columns))
        observed = (row[:, None] * columns + column).flatten()
        query = layer.query.index_select(2, observed)
        scores = attention_scores(query, layer.key, scale=layer.scale, reduce_rows="sum", reduce_heads="none",
                                  logits=True)
        scores = of_kv_heads(scores, layer.key.shape[1])
        kept = torch.zeros_like(place, dtype=torch.bool).index_fill(0, observed + keys - n, True)
        best = smooth(scores.masked_fill(kept, -torch.inf), self.kernel, "max")
        whole = keys <= self.trigger
        return evict(layer, best, kept, keys if whole else min(self.capacity, keys))
