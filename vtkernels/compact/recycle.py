"""What published methods do with the tokens that a selection leaves over: compositions of the ops, batched."""

import torch
from torch import Tensor

from ..score.prototype_scores import prototype_scores
from .gather_tokens import gather_tokens
from .merge_tokens import merge_tokens


def contextual_tokens(tokens: Tensor, metric: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Every so-manyth token, plus the mean of the tokens that are most like it.

    With `step = N // count`, tokens 0, step, 2 step, .. are the targets. Each other token goes to the target with the
    largest cosine of `metric` (ties to the first), and a target becomes itself plus the mean of its tokens.

    Args:
        tokens: `[B, N, D]`, float32, float16 or bfloat16: the tokens left over.
        metric: `[B, N, d]`, same dtype: what is compared, such as the keys averaged over heads.
        count: number of targets, 1 to N.

    Returns:
        tokens: `[B, count, D]`.
        positions: `[count]` int64, where the targets stood.

    Example:
        >>> rest, keys = torch.randn(2, 90, 64), torch.randn(2, 90, 16)
        >>> vtkernels.contextual_tokens(rest, keys, 10)[0].shape
        torch.Size([2, 10, 64])

    Source: VisionZip (CVPR 2025).
    """
    n = tokens.shape[1]
    if not 1 <= count <= n:
        raise ValueError(f"contextual_tokens: `count` is {count}, allowed: 1 to {n} (there are N tokens)")
    targets = torch.arange(count, device=tokens.device) * (n // count)
    # One group of prototypes per image: [N, B, d] against [B, count, d].
    _, nearest = prototype_scores(metric.transpose(0, 1), metric[:, targets])
    assignment = nearest.T.index_fill(1, targets, -1)
    means, _ = merge_tokens(tokens, assignment, count)
    return tokens[:, targets] + means, targets


def recycle_tokens(tokens: Tensor, groups: Tensor, count: int, importance: Tensor) -> tuple[Tensor, Tensor]:
    """The importance-weighted mean of each group, and the place of its most important member.

    Args:
        tokens: `[B, N, D]`, float32, float16 or bfloat16.
        groups: `[B, N]` int32 or int64, the group 0 to `count` - 1 of each token, such as its cell of a grid; -1 for a
            token that is not recycled.
        count: number of groups.
        importance: `[B, N]` float32, above 0 for tokens that shall count.

    Returns:
        tokens: `[B, count, D]`, zeros for an empty group.
        positions: `[B, count]` int64: the member with the largest importance, ties to the first; -1 for an empty group.

    Example:
        >>> rows, places = vtkernels.recycle_tokens(torch.ones(1, 4, 2), torch.tensor([[0, 0, 1, -1]]), 2,
        ...                                         torch.tensor([[0.1, 0.3, 0.2, 0.9]]))
        >>> places
        tensor([[1, 2]])

    Source: VFlowOpt (ICCV 2025), with grid cells as groups; with clusters (`cluster_density_peaks`) as groups and an
    importance of 1 the recycled tokens of SparseVLM (ICML 2025).
    """
    merged, _ = merge_tokens(tokens, groups, count, weights=importance)
    n = tokens.shape[1]
    rank = torch.empty_like(groups, dtype=torch.int64)
    order = importance.argsort(dim=1, descending=True, stable=True)
    rank.scatter_(1, order, torch.arange(n, device=tokens.device).expand_as(order))
    slot = torch.where((groups >= 0) & (groups < count), groups, count).long()
    best = rank.new_full((groups.shape[0], count + 1), n).scatter_reduce(1, slot, rank, "amin")[:, :count]
    positions = order.gather(1, best.clamp(max=max(n - 1, 0))) if n else best
    return merged, torch.where(best < n, positions, -1)


def interleave_tokens(first: Tensor, first_positions: Tensor, second: Tensor,
                      second_positions: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of tokens as one, in the order of their positions.

    Args:
        first, second: `[B, K, D]` and `[B, M, D]`.
        first_positions, second_positions: `[B, K]` and `[B, M]` int64; equal ones keep `first` before `second`.

    Returns:
        tokens: `[B, K + M, D]`.
        positions: `[B, K + M]` ascending.

    Example:
        >>> tokens, places = vtkernels.interleave_tokens(torch.zeros(1, 2, 1), torch.tensor([[0, 5]]),
        ...                                              torch.ones(1, 1, 1), torch.tensor([[3]]))
        >>> tokens.flatten().tolist(), places.tolist()
        ([0.0, 1.0, 0.0], [[0, 3, 5]])
    """
    positions, order = torch.cat([first_positions, second_positions], 1).sort(dim=1, stable=True)
    return gather_tokens([torch.cat([first, second], 1)], order)[0], positions
