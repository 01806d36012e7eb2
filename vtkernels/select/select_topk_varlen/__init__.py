"""Select a number of tokens of its own from each packed segment."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._checks import fail, no_grad_needed
from ..._library import OPS

_op = OPS.select_topk_varlen.default


def select_topk_varlen(scores: Tensor, cu_seqlens: Tensor | Sequence[int], k: Tensor | Sequence[int],
                       total_out: int | None = None, *, largest: bool = True, protected: Tensor | None = None,
                       excluded: Tensor | None = None, order: str = "index") -> tuple[Tensor, Tensor]:
    """Positions of the best scores of each of B packed segments, each with its own count.

    Args:
        scores: `[T]` float32 of all segments, any stride.
        cu_seqlens: `[B + 1]` int32 on the device: segment i is `cu_seqlens[i] .. cu_seqlens[i + 1]`. Or a list.
        k: `[B]` how many to select of each segment: int32 on the device, or a list.
        total_out: length of the output. May be left out when both counts are lists: then it is their sum. With device
            tensors, an upper bound.
        largest: keep the largest scores (default) or the smallest.
        protected: `[T]` bool: these come before all others of their segment.
        excluded: `[T]` bool: these are never selected. A segment with fewer other tokens than its k selects fewer.
        order: `"index"`: ascending positions. `"score"`: the best of each segment first.

    Returns:
        indices `[total_out]` int64 (positions in the packed input, segment after segment; -1 past the last one), and
        cu_seqlens `[B + 1]` int32 of what was selected.

    Ties and NaN as in `select_topk`. Lists are checked on the host. Device values are never read back: a count outside
    0 .. the segment's length is clamped, bounds that do not ascend from 0 or leave 0 .. T are clamped, what is selected
    past `total_out` is dropped; `torch.ops.vtkernels.select_topk_varlen.out` reports each of these in a `status` word.

    Raises:
        TypeError, ValueError: as `select_topk`; also a list with a value outside its segment, or `total_out` missing
            where a count is on the device.
        RuntimeError: the same from the native backends, or scores that require a gradient.

    Example:
        >>> scores = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.2, 0.8])
        >>> vtkernels.select_topk_varlen(scores, [0, 3, 6], [2, 1])
        (tensor([1, 2, 5]), tensor([0, 2, 3], dtype=torch.int32))
    """
    op = "select_topk_varlen"
    no_grad_needed(op, scores=scores)
    given = {"cu_seqlens": cu_seqlens, "k": k}
    lists = {arg: [int(v) for v in value] for arg, value in given.items() if not isinstance(value, Tensor)}
    if len(lists) == 2:
        exact = _exact_total(op, scores.shape[0], **lists)
        total_out = exact if total_out is None else total_out
        if total_out < exact:
            fail(ValueError, op, "total_out", total_out, f"at least the {exact} tokens selected")
    elif total_out is None:
        fail(ValueError, op, "total_out", None, "a bound, because a count is on the device")
    dev = {arg: torch.tensor(lists[arg], dtype=torch.int32).to(scores.device, non_blocking=True) if arg in lists else v
           for arg, v in given.items()}
    return _op(scores, dev["cu_seqlens"], dev["k"], total_out, largest=largest, protected=protected, excluded=excluded,
               order=order)


def _exact_total(op: str, total: int, cu_seqlens: list[int], k: list[int]) -> int:
    """Tokens selected in all, after a check of every value."""
    if len(cu_seqlens) != len(k) + 1:
        fail(ValueError, op, "cu_seqlens", f"of length {len(cu_seqlens)}", f"one more than `k` ({len(k) + 1})")
    if cu_seqlens[0] != 0 or cu_seqlens[-1] > total or sorted(cu_seqlens) != cu_seqlens:
        fail(ValueError, op, "cu_seqlens", cu_seqlens, f"0 first, never decreasing, at most T = {total}")
    for i, wanted in enumerate(k):
        length = cu_seqlens[i + 1] - cu_seqlens[i]
        if not 0 <= wanted <= length:
            fail(ValueError, op, f"k[{i}]", wanted, f"0 to {length} (the length of the segment)")
    return sum(k)
