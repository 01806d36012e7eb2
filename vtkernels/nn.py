"""Modules that hold a codebook and drop into a model."""

from collections.abc import Sequence

from torch import Tensor, nn

from ._checks import fail
from .fused.prune_topk import prune_topk
from .score.prototype_scores.reference import reciprocal_norms


class PruneTopK(nn.Module):
    """`prune_topk` as a module: holds the prototypes and their norms, moves with `.to()`, has no parameters.

    Args:
        prototypes: `[P, D]` codebook of redundant prototypes.
        k: tokens kept of the span, or
        keep_ratio: the share of the span that is kept, in (0, 1]; k is `round(keep_ratio * span length)`, at least 1.
        keep_similar, span_start, span_len, kv_layout: as in `prune_topk`.

    Example:
        >>> prune = vtkernels.nn.PruneTopK(torch.randn(64, 1024), keep_ratio=0.25)
        >>> hidden, kv, indices, scores = prune(torch.randn(1, 576, 1024))
        >>> hidden.shape
        torch.Size([1, 144, 1024])
    """

    prototypes: Tensor
    prototype_rnorm: Tensor

    def __init__(self, prototypes: Tensor, *, k: int | None = None, keep_ratio: float | None = None,
                 keep_similar: bool = False, span_start: int = 0, span_len: int = -1, kv_layout: str = "HND") -> None:
        super().__init__()
        if (k is None) == (keep_ratio is None):
            fail(ValueError, "PruneTopK", "k, keep_ratio", f"{k}, {keep_ratio}", "exactly one of them")
        if keep_ratio is not None and not 0 < keep_ratio <= 1:
            fail(ValueError, "PruneTopK", "keep_ratio", keep_ratio, "above 0 and at most 1")
        self.k, self.keep_ratio = k, keep_ratio
        self.keep_similar, self.kv_layout = keep_similar, kv_layout
        self.span_start, self.span_len = span_start, span_len
        self.register_buffer("prototypes", prototypes.detach())
        self.register_buffer("prototype_rnorm", reciprocal_norms(prototypes.detach()), persistent=False)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """`.to()`, `.half()` and kin: the norms stay float32 and follow the prototypes as they are now rounded."""
        super()._apply(fn, recurse)
        self.prototype_rnorm = reciprocal_norms(self.prototypes)
        return self

    def forward(self, hidden: Tensor, kv: Sequence[Tensor] | None = None, *,
                span_starts: Tensor | None = None) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """Prune `hidden` [B, N, D] and its caches; the four outputs of `prune_topk`."""
        length = hidden.shape[1] - self.span_start if self.span_len == -1 else self.span_len
        k = max(1, round(self.keep_ratio * length)) if self.k is None and self.keep_ratio is not None else self.k
        assert k is not None
        return prune_topk(hidden, self.prototypes, k, kv, keep_similar=self.keep_similar, span_start=self.span_start,
                          span_len=self.span_len, span_starts=span_starts, prototype_rnorm=self.prototype_rnorm,
                          kv_layout=self.kv_layout)

    def extra_repr(self) -> str:
        kept = f"k={self.k}" if self.keep_ratio is None else f"keep_ratio={self.keep_ratio}"
        return f"{tuple(self.prototypes.shape)}, {kept}, span=({self.span_start}, {self.span_len})"
