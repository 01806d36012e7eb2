"""`prune_topk` for packed sequences of different lengths."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._checks import fail, no_grad_needed
from ..._library import OPS

_op = OPS.prune_topk_varlen.default


def prune_topk_varlen(hidden: Tensor, prototypes: Tensor, cu_seqlens: Tensor | Sequence[int],
                      k: Tensor | Sequence[int], total_out: int | None = None, kv: Sequence[Tensor] | None = None, *,
                      keep_similar: bool = False, span_starts: Tensor | Sequence[int] | None = None,
                      span_lens: Tensor | Sequence[int] | None = None, prototype_rnorm: Tensor | None = None,
                      kv_layout: str = "HND") -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    """Prune each of B packed sequences to its own count, as `prune_topk` does for the rows of a batch.

    Args:
        hidden: `[T, D]` packed tokens, float32, float16 or bfloat16.
        prototypes: `[P, D]`, P >= 1, dtype and device of `hidden`.
        cu_seqlens: `[B + 1]` int32 on the device: sequence i is tokens `cu_seqlens[i] .. cu_seqlens[i + 1]`. Or a list.
        k: `[B]` tokens kept of each span: int32 on the device, or a list.
        total_out: rows of the output. May be left out when all counts are lists: then it is computed exactly. With
            device tensors, an upper bound: rows past the last sequence are zero-filled and their index is -1.
        kv: aligned caches, each `[H, T, d]` (`"HND"`) or `[T, H, d]` (`"NHD"`).
        keep_similar: keep the most similar tokens instead.
        span_starts, span_lens: `[B]` visual span of each sequence, relative to its start; both or neither (whole
            sequences). int32 on the device, or lists.
        prototype_rnorm: `[P]` float32 reciprocal norms of the prototypes.
        kv_layout: `"HND"` or `"NHD"`.

    Returns:
        hidden `[total_out, D]`, kv, indices `[total_out]` int64 (ascending positions in the packed input; -1 for unused
        rows), scores `[T]` float32 (NaN where a token did not compete), cu_seqlens `[B + 1]` int32 of the output.

    Lists are checked on the host. Device values are never read back: spans and counts outside their sequence are
    clamped, sequences that do not ascend or leave `0 .. T` are clamped, kept tokens past `total_out` are dropped;
    `torch.ops.vtkernels.prune_topk_varlen.out` reports each of these in a `status` word.

    Raises:
        TypeError, ValueError, RuntimeError: as `prune_topk`; also a list of the wrong length or with a value outside
            its sequence, or `total_out` missing where a count is on the device.

    Example:
        >>> tokens, codebook = torch.randn(300, 64), torch.randn(8, 64)
        >>> out, _, indices, _, cu = vtkernels.prune_topk_varlen(tokens, codebook, [0, 100, 300], [10, 20])
        >>> out.shape, cu.tolist()
        (torch.Size([30, 64]), [0, 10, 30])
    """
    op = "prune_topk_varlen"
    no_grad_needed(op, hidden=hidden, prototypes=prototypes, kv=kv)
    given = {"cu_seqlens": cu_seqlens, "k": k, "span_starts": span_starts, "span_lens": span_lens}
    lists = {arg: [int(v) for v in value] for arg, value in given.items()
             if value is not None and not isinstance(value, Tensor)}
    if all(value is None or arg in lists for arg, value in given.items()):
        exact = _exact_total(op, hidden.shape[0], **lists)
        total_out = exact if total_out is None else total_out
        if total_out < exact:
            fail(ValueError, op, "total_out", total_out, f"at least the {exact} tokens kept")
    elif total_out is None:
        fail(ValueError, op, "total_out", None, "a bound, because a count is on the device")
    dev = {arg: torch.tensor(lists[arg], dtype=torch.int32).to(hidden.device, non_blocking=True) if arg in lists else v
           for arg, v in given.items()}
    return _op(hidden, prototypes, dev["cu_seqlens"], dev["k"], total_out, kv, keep_similar=keep_similar,
               span_starts=dev["span_starts"], span_lens=dev["span_lens"], prototype_rnorm=prototype_rnorm,
               kv_layout=kv_layout)


def _exact_total(op: str, tokens: int, cu_seqlens: list[int], k: list[int], span_starts: list[int] | None = None,
                 span_lens: list[int] | None = None) -> int:
    """Tokens kept in all, after a check of every value."""
    batch = len(k)
    if len(cu_seqlens) != batch + 1:
        fail(ValueError, op, "cu_seqlens", f"of length {len(cu_seqlens)}", f"one more than `k` ({batch + 1})")
    if cu_seqlens[0] != 0 or cu_seqlens[-1] > tokens or sorted(cu_seqlens) != cu_seqlens:
        fail(ValueError, op, "cu_seqlens", cu_seqlens, f"0 first, never decreasing, at most T = {tokens}")
    if (span_starts is None) != (span_lens is None):
        fail(ValueError, op, "span_starts, span_lens", "only one of them", "both, or neither (whole sequences)")
    total = 0
    for i in range(batch):
        length = cu_seqlens[i + 1] - cu_seqlens[i]
        start, span = 0, length
        if span_starts is not None and span_lens is not None:
            for arg, value in (("span_starts", span_starts), ("span_lens", span_lens)):
                if len(value) != batch:
                    fail(ValueError, op, arg, f"of length {len(value)}", f"the length of `k` ({batch})")
            start, span = span_starts[i], span_lens[i]
            if start < 0 or span < 0 or start + span > length:
                fail(ValueError, op, f"span_starts[{i}], span_lens[{i}]", (start, span),
                     f"a span inside the sequence of {length} tokens")
        if not 0 <= k[i] <= span:
            fail(ValueError, op, f"k[{i}]", k[i], f"0 to {span} (the length of the span)")
        total += length - span + k[i]
    return total
