"""Score tokens by a softmax over prototypes."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.prototype_softmax_scores.default


def prototype_softmax_scores(tokens: Tensor, prototypes: Tensor, *, over_tokens: bool = False,
                             prototype_rnorm: Tensor | None = None) -> Tensor:
    """The largest softmax weight of each token over the prototypes. Never stores tokens x prototypes.

    With `s` the cosine of a token and a prototype, `w = softmax of s over the P prototypes` (temperature 1), with
    `over_tokens` times `softmax of s over the N tokens` of the same row; the score is `max_p w`.

    Args:
        tokens: `[B, N, D]`, float32, float16 or bfloat16, any strides.
        prototypes: `[P, D]`, P >= 1, dtype and device of `tokens`, any strides.
        over_tokens: multiply by the softmax over the tokens (the "double softmax" variant).
        prototype_rnorm: `[P]` float32 reciprocal L2 norms of the prototypes (0 for a zero prototype), to save their
            computation.

    Returns:
        `[B, N]` float32, higher = more redundant.

    Numbers: cosines as in `prototype_scores`. They are at most 1 in size, so `exp(s)` is taken as it is, without a
    maximum. Sums are float32 in a fixed order. A NaN similarity makes the token's score NaN; with `over_tokens` also
    those of all tokens of the row, whose sum it is part of. Other rows do not matter, and without `over_tokens` nor do
    other tokens. Results repeat bitwise on one device and configuration.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes or devices that do not fit.
        RuntimeError: the same from the native backends, or an input that requires a gradient.

    Example:
        >>> tokens = torch.tensor([[[1.0, 0.0], [0.0, 5.0], [0.0, 0.0]]])
        >>> vtkernels.prototype_softmax_scores(tokens, torch.eye(2))
        tensor([[0.7311, 0.7311, 0.5000]])
        >>> vtkernels.prototype_softmax_scores(tokens, torch.eye(2), over_tokens=True)
        tensor([[0.4212, 0.4212, 0.1060]])

    Source: the single and double softmax variants of RedundancyCodebook (arXiv 2503.20540).
    """
    no_grad_needed("prototype_softmax_scores", tokens=tokens, prototypes=prototypes)
    return _op(tokens, prototypes, over_tokens=over_tokens, prototype_rnorm=prototype_rnorm)
