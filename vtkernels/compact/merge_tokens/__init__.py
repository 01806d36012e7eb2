"""Merge tokens into groups, and put merged rows back."""

from typing import Any

import torch
from torch import Tensor

from ..._checks import not_nested
from ..._library import OPS
from .._autograd import wants_grad
from ..gather_tokens import gather_tokens

_op = OPS.merge_tokens.default


def merge_tokens(tokens: Tensor, assignment: Tensor, groups: int, *, weights: Tensor | None = None,
                 reduce: str = "mean") -> tuple[Tensor, Tensor]:
    """Weighted mean or sum of the tokens of each group. Deterministic: members are added in the order of the tokens.

    Args:
        tokens: `[B, N, D]`, float32, float16 or bfloat16, any strides.
        assignment: `[B, N]` int32 or int64, the group 0 to `groups` - 1 of each token; -1 drops the token.
        groups: rows of the output. Groups come out in the order of their numbers: number them by their first or main
            token (`merge_assignment` does) and the order of the tokens is kept.
        weights: `[B, N]` float32, such as the sizes of earlier merges or importances; 1 for all when absent.
        reduce: `"mean"`: `sum_i w_i x_i / sum_i w_i`; `"sum"`: `sum_i w_i x_i`.

    Returns:
        tokens: `[B, groups, D]`, dtype of the input. The mean of a group of one member is that token, bit for bit.
        sizes: `[B, groups]` float32, the sum of the weights of each group. `log(sizes)` is the bias of proportional
            attention; pass `sizes` as `weights` of the next merge.

    Sums are in float32. A token of weight 0 is left out, whatever it holds. A group without members, and the mean of
    one whose weights sum to 0, is a row of zeros. A group number below -1 or not below `groups` drops the token and
    sets a bit of the `status` word of the `.out` variant. Gradients flow to `tokens`.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes, devices or `reduce` that do not fit.
        RuntimeError: the same from the native backends.

    Example:
        >>> tokens = torch.tensor([[[1.0], [2.0], [6.0], [7.0]]])
        >>> merged, sizes = vtkernels.merge_tokens(tokens, torch.tensor([[0, 1, 1, -1]]), 2)
        >>> merged.flatten().tolist(), sizes.tolist()
        ([1.0, 4.0], [[1.0, 2.0]])

    Source: the size-weighted mean of ToMe (arXiv 2210.09461); the same sums merge in VisionZip, VFlowOpt and SparseVLM.
    """
    not_nested("merge_tokens", tokens=tokens)
    if wants_grad([tokens]):
        return _Merge.apply(tokens, assignment, groups, weights, reduce)
    return _op(tokens, assignment, groups, weights=weights, reduce=reduce)


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, assignment: Tensor, groups: int, weights: Tensor | None,
                reduce: str) -> tuple[Tensor, Tensor]:
        merged, sizes = _op(tokens, assignment, groups, weights=weights, reduce=reduce)
        ctx.save_for_backward(assignment, weights, sizes)
        ctx.mean = reduce == "mean"
        ctx.mark_non_differentiable(sizes)
        return merged, sizes

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        assignment, weights, sizes = ctx.saved_tensors
        share = torch.ones_like(sizes)
        if ctx.mean:
            share = torch.where(sizes == 0, 0.0, 1 / sizes)
        per_token = gather_tokens([grad, share], assignment)  # zeros for tokens of no group
        factor = per_token[1] if weights is None else per_token[1] * weights
        return (per_token[0].float() * factor[..., None]).to(grad.dtype), None, None, None, None


def unmerge_tokens(merged: Tensor, assignment: Tensor) -> Tensor:
    """Give every token the row of its group: the way back from `merge_tokens`.

    Args:
        merged: `[B, groups, D]`, any dtype.
        assignment: `[B, N]` int32 or int64, the group of each token; one that was dropped (-1) gets zeros.

    Returns:
        `[B, N, D]`. Gradients flow to `merged`.

    Example:
        >>> vtkernels.unmerge_tokens(torch.tensor([[[1.0], [4.0]]]), torch.tensor([[0, 1, 1, -1]])).flatten()
        tensor([1., 4., 4., 0.])
    """
    return gather_tokens([merged], assignment)[0]


def merge_assignment(kept: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """The assignment that merges each source into its target and keeps the order of the tokens.

    Args:
        kept: `[B, K]` ascending positions of the tokens that stay; the j-th of them becomes group j.
        sources: `[B, r]` positions of the tokens that are merged.
        targets: `[B, r]` the kept token that each source is merged into.

    Returns:
        `[B, K + r]` int64, for `merge_tokens(tokens, assignment, groups=K)`.

    Example:
        >>> sources, targets, _, kept = vtkernels.match_bipartite(torch.randn(1, 8, 4), 3)
        >>> vtkernels.merge_assignment(kept, sources, targets).shape
        torch.Size([1, 8])
    """
    batch, count = kept.shape
    assignment = kept.new_full((batch, count + sources.shape[1]), -1, dtype=torch.int64)
    group = torch.arange(count, device=kept.device).expand(batch, count)
    assignment.scatter_(1, kept.long(), group)
    return assignment.scatter_(1, sources.long(), assignment.gather(1, targets.long()))
