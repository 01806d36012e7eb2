"""SnapKV: keep the keys that the last rows of the prompt look at."""

from dataclasses import dataclass

from ._cache import cache_of, check_pooling, evict, smooth, window_scores, with_window
from ._inputs import Inputs, Result
from ._method import Info, Method, count_of
from ._registry import register


@register(Info("snapkv", "SnapKV", "NeurIPS 2024, arXiv 2404.14469", "cache", "KV cache", ("decoder",), "exact",
               "paper", "attention"))
@dataclass(frozen=True)
class SnapKV(Method):
    """The last `window` rows of the prompt vote: `s_j = sum_i softmax_j(q_i K^T / sqrt(d))`, summed over these rows i,
    mean over the query heads of a key head, pooled over neighbouring keys. Each head keeps its best keys and the
    window.

    Args:
        keep: keys that stay in each head, the window included, or their share of the cache (rounded).
        window: rows that vote, at most those of the cache.
        kernel: keys that are pooled, odd.
        pooling: "max" or "mean", the latter over zeros beyond the ends.

    Inputs: `decoder[-1]`, its query the last rows of the prompt (at least the window), its keys and values the whole
    cache. `indices` are `[B, Hkv, K]`; with grouped queries the cache stays grouped (the official code repeats it for
    each query head). Ties go to the lower position, NaN ranks last.

    Raises:
        ValueError: fewer query rows than the window, a `keep` under the window.

    Source: Li et al., "SnapKV: LLM Knows What You Are Looking for Before Generation", NeurIPS 2024, arXiv 2404.14469;
    details from the paper as we know it.
    """

    keep: float | int = 1024
    window: int = 32
    kernel: int = 7
    pooling: str = "max"

    def __post_init__(self) -> None:
        check_pooling("snapkv", self.kernel, self.pooling)

    def run(self, inputs: Inputs) -> Result:
        layer = inputs.decoder[-1]
        keys = layer.key.shape[2]
        window = min(self.window, keys)
        cache_of("snapkv", layer, window)
        count = count_of("snapkv", self.keep, keys, keys)
        if count < window:
            raise ValueError(f"snapkv: `keep` is {self.keep}, {count} of {keys} keys, allowed: at least the {window} "
                             "of the window")
        votes = smooth(window_scores(layer, window), self.kernel, self.pooling)
        return evict(layer, *with_window(votes, keys), count)
