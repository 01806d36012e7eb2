"""ZipVL: a budget for each layer from its attention, then fewer bits or nothing for the other keys."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..compact.dequantize_kv import dequantize_kv
from ..compact.gather_kv import gather_kv
from ..compact.quantize_kv import quantize_kv
from ..select.select_top_p import select_top_p
from ..select.select_topk import select_topk
from ._cache import cache_of
from ._inputs import Attention, Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("zipvl", "ZipVL", "ICCV 2025, arXiv 2410.08584", "cache", "KV cache", ("decoder",), "ragged", "paper",
               "attention"))
@dataclass(frozen=True)
class ZipVL(Method):
    """With the attention `a_j` that key j gets from the probe rows (sum over rows, mean over heads), the budget is the
    fewest keys that hold the share `tau` of all attention, p of them. The p keys with the largest `a_j / n_j` are the
    important ones, n_j being the number of probe rows that see key j. The others are evicted (v2), or important keys
    are quantised with more bits than the others (v1).

    Args:
        tau: share of the attention, above 0 and at most 1.
        bits: None: evict the others. Else the bits of important and of other keys, 8, 4 or 2 each, such as (4, 2).
        quirk_visibility: divide by `S - j`, the rows of the whole prompt that see key j, although only the probe rows
            were summed, as in the code of ZipCache, which ZipVL builds on.

    Inputs: `decoder[-1]`, its query the probe rows, which are the last of the sequence (ZipCache takes the last 5 % and
    as many random ones); its keys and values the whole cache. The number p stays on the device: `indices` `[B, S]`, -1
    past `counts`, are the important keys of all heads. Evicted: `kv` are K and V, `[B, H, S, d]`, zero past the counts.
    Quantised: `kv` are the ten tensors of `quantize_kv` for both classes, which `restore` turns back. Attention among
    the important keys alone is attention over the gathered rows. Ties go to the lower position, NaN ranks last.

    Source: He et al., "ZipVL: Accelerating Vision-Language Models through Dynamic Token Sparsity", ICCV 2025, arXiv
    2410.08584; budget and scores as in the paper, quantisation as in ZipCache (arXiv 2405.14256). The default of tau is
    about the paper's.
    """

    tau: float = 0.975
    bits: tuple[int, int] | None = None
    quirk_visibility: bool = False

    def run(self, inputs: Inputs) -> Result:
        layer = inputs.decoder[-1]
        key, value = cache_of("zipvl", layer)
        n = key.shape[2]
        received = replace(layer, start=0, causal=True).scores(n, reduce_rows="sum")
        _, counts, _ = select_top_p(received, self.tau)
        scores = received / self._seen(layer)
        indices = select_topk(scores, n, ks=counts)
        if self.bits is None:
            return Result(indices=indices, counts=counts, scores=scores, kv=tuple(gather_kv([key, value], indices)))
        packed = quantize_kv(key, value, [indices, _others(indices)], self.bits)
        return Result(indices=indices, counts=counts, scores=scores, kv=tuple(t for part in packed for t in part))

    def restore(self, result: Result, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """K and V, `[B, H, S, d]`, from a result with `bits`."""
        if self.bits is None or result.indices is None:
            raise ValueError("zipvl: `bits` is None, allowed: two numbers of bits (evicted keys do not come back)")
        key_codes, key_params, value_codes, value_params, scales = (result.kv[i:i + 2] for i in range(0, 10, 2))
        classes = [result.indices, _others(result.indices)]
        return dequantize_kv(key_codes, key_params, value_codes, value_params, scales, classes, self.bits,
                             result.indices.shape[1], dtype=dtype)

    def _seen(self, layer: Attention) -> Tensor:
        """`[S]`: how many rows see each key."""
        n, rows = layer.key.shape[2], layer.query.shape[2]
        after = torch.arange(n, 0, -1, device=layer.key.device)
        return after if self.quirk_visibility else after.clamp(max=rows)


def _others(indices: Tensor) -> Tensor:
    """The positions that are not among `indices` `[B, S]`, ascending, then -1."""
    batch, n = indices.shape
    slot = torch.where(indices < 0, n, indices)
    taken = torch.zeros(batch, n + 1, dtype=torch.bool, device=indices.device).scatter_(1, slot, True)[:, :n]
    return select_topk(torch.zeros(batch, n, device=indices.device), n, excluded=taken)
