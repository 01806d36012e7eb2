"""GUI-KV: votes of the last rows, the saliency of the screen, and what earlier screens hold that it does not."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..score.row_statistics import row_statistics
from ..score.subspace_residual import orthonormal_basis, subspace_residual
from ..select.select_topk import select_topk
from ._cache import cache_of, check_pooling, evict, smooth, window_scores, with_window
from ._inputs import Inputs, Result
from ._method import Info, Method, count_of
from ._registry import register


@register(Info("gui_kv", "GUI-KV", "arXiv 2510.00536", "cache", "KV cache", ("hidden", "decoder", "spans"), "exact",
               "code", "attention"))
@dataclass(frozen=True)
class GUIKV(Method):
    """Which keys each head keeps, beside those of the last `window` rows, for a history of screenshots:

    1. `s_j`: the attention of the window's rows, summed, mean over 5 neighbouring keys.
    2. Keys of the last image add `alpha softmax_j(z_j / temperature)`, z the z-scores of the norms `|h_j|` in it.
    3. Of the keys of earlier images, the share `1 - keep` with the smallest `|k_j - Q Q^T k_j|` comes after all others;
       Q spans the first `rank` keys of the last image.

    Args:
        keep: keys that stay in each head, the window included, or their share of the cache (rounded).
        window: last rows that vote; at least 1, at most those of the cache.
        alpha: weight of the saliency.
        temperature: of its softmax.
        rank: directions of the last image's subspace.
        kernel: neighbouring keys that are averaged, odd, over zeros beyond the ends.
        quirk_zeroed: redundant keys of earlier images get the score 0 as in the official code, and can so come before
            keys that nobody looks at.

    Inputs: `decoder[-1]`, its query the last rows of the prompt (at least the window), its keys and values the whole
    cache; `hidden` `[B, S, D]` of all its positions; `spans` of the images, in order. Q is the paper's QR, which,
    unpivoted, spans the first keys. With grouped queries votes are means over the query heads of a key head, and
    the cache stays grouped. `indices` are `[B, Hkv, K]`. Ties go to the lower position, NaN ranks last.

    Raises:
        ValueError: fewer query rows than the window, a `keep` under the window, `hidden` or `spans` that do not fit.

    Source: Huang et al., "GUI-KV: Efficient GUI Agents via KV Cache with Spatio-Temporal Awareness", arXiv 2510.00536;
    details as in the official code, defaults of its scripts.
    """

    keep: float | int = 0.2
    window: int = 8
    alpha: float = 2.0
    temperature: float = 3.5
    rank: int = 32
    kernel: int = 5
    quirk_zeroed: bool = False

    def __post_init__(self) -> None:
        check_pooling("gui_kv", self.kernel, "mean")

    def run(self, inputs: Inputs) -> Result:
        layer = inputs.decoder[-1]
        keys = layer.key.shape[2]
        window = min(self.window, keys)
        cache_of("gui_kv", layer, window)
        count = count_of("gui_kv", self.keep, keys, keys)
        self._fit(inputs, keys, window, count)
        votes, inside = with_window(smooth(window_scores(layer, window), self.kernel, "mean"), keys)
        *earlier, (start, length) = inputs.spans
        votes[..., start:start + length] += self.alpha * self._saliency(inputs.tokens[:, start:start + length])[:, None]
        if earlier:
            places = torch.cat([torch.arange(s, s + n, device=votes.device) for s, n in earlier])
            known = layer.key[:, :, start:start + min(length, self.rank)].flatten(0, 1)
            old = layer.key.index_select(2, places).flatten(0, 1)
            new = subspace_residual(old, orthonormal_basis(known, self.rank))
            redundant = select_topk(new, int((1 - count / keys) * len(places)), largest=False)
            votes.flatten(0, 1).scatter_(1, places[redundant], 0.0 if self.quirk_zeroed else -torch.inf)
        return evict(layer, votes, inside, count)

    def _saliency(self, image: Tensor) -> Tensor:
        """`[B, n]`: the softmax of the z-scores of the norms of `[B, n, D]`."""
        norms = row_statistics(image)[1]
        centred = norms - norms.mean(1, keepdim=True)
        return (centred / norms.std(1, keepdim=True) / self.temperature).softmax(1)

    def _fit(self, inputs: Inputs, keys: int, window: int, count: int) -> None:
        held = inputs.tokens.shape[1]
        if held != keys:
            raise ValueError(f"gui_kv: `inputs.hidden` has {held} positions, allowed: {keys}, as many as keys")
        ends = [end for start, length in inputs.spans for end in (start, start + length)]
        if ends != sorted(ends) or ends[0] < 0 or ends[-1] > keys:
            raise ValueError(f"gui_kv: `inputs.spans` is {inputs.spans}, allowed: ascending and within {keys} keys")
        if count < window:
            raise ValueError(f"gui_kv: `keep` is {self.keep}, {count} of {keys} keys, allowed: at least the {window} "
                             "of the window")
