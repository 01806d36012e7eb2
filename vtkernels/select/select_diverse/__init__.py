"""Select tokens that differ from each other."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.select_diverse.default


def select_diverse(features: Tensor, k: int, *, objective: str = "max_min", relevance: Tensor | None = None,
                   seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Greedy selection of k tokens of each row that differ from each other.

    `S[i, j]` is the cosine similarity of tokens i and j in float32, `1 - S[i, j]` their distance. Each step picks, of
    the tokens not picked yet, the one with the largest value:

    - `"max_min"`: distance to the nearest picked token. The first pick is the token whose nearest other token is
      farthest.
    - `"max_sum"`: sum of the distances to the picked tokens. The first pick has the largest sum of distances to all
      others.
    - `"dpp"`: what the picked tokens leave of the diagonal of `L[i, j] = relevance[i] * S[i, j] * relevance[j]`, which
      is greedy MAP inference for the determinantal point process of L. Once no value is positive, the remaining picks
      are the tokens not picked, in ascending order.

    The selection is exact: what comes out is what the whole matrix S would give, whether a backend stores it or not.

    Args:
        features: `[B, N, D]` float32, float16 or bfloat16, any strides. Products are exact, sums float32.
        k: how many to select, 0 <= k <= N. A host number, so the output shape is static.
        objective: `"max_min"`, `"max_sum"` or `"dpp"`.
        relevance: `[B, N]` float32, how much each token matters; only with `"dpp"`. None: 1.
        seeds: `[B, S]` int32 or int64 positions, S <= k, not with `"dpp"`: the first picks, in this order. They count
            towards k. A seed outside 0 to N - 1 and the repetition of a seed are ignored (the `.out` variant sets
            `STATUS_BAD_INDEX` in `status`); k distinct tokens come out all the same.

    Returns:
        order: `[B, k]` int64 positions in the order of picking, all distinct and valid.
        indices: `[B, k]` int64, the same positions, ascending.

    Ties and NaN: equal values prefer the lower position. A token of zero norm has similarity 0 with all tokens,
    itself included. A token whose norm is NaN or too large for float32 has no similarity: no distance to it counts,
    and its own value is NaN, which ranks last. The first pick by `"max_min"` counts a token without any distance as
    infinitely far.

    Memory: Triton holds the similarities of as many rows as fit into 512 MiB, and of at least one, which is
    `4 * N * N` bytes; `"dpp"` takes another `4 * k * N` for each. So does the CPU for each row that a thread works on,
    but for `"max_min"`, which takes at most `4 * k * D` bytes and about `512 * N`.

    Raises:
        TypeError: tensors that are not dense, or of another dtype.
        ValueError: k outside 0 to N, an unknown objective, more than k seeds, relevance or seeds with an objective
            that does not take them, shapes that do not fit.
        RuntimeError: the same from the native backends, or features or relevance that require a gradient.

    Example:
        >>> tokens = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]])
        >>> order, indices = vtkernels.select_diverse(tokens, 3)
        >>> order
        tensor([[3, 0, 2]])
        >>> indices
        tensor([[0, 2, 3]])

    Source: max-min and its first pick from DivPrune (arXiv 2503.02175), max-sum from ToDRE (arXiv 2505.18757), `dpp`
    from CDPruner (arXiv 2506.10967), after the greedy MAP inference of Chen et al. (arXiv 1709.05135).
    """
    no_grad_needed("select_diverse", features=features, relevance=relevance)
    return _op(features, k, objective=objective, relevance=relevance, seeds=seeds)
