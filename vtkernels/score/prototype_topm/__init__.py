"""The few nearest prototypes of each token."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.prototype_topm.default


def prototype_topm(tokens: Tensor, prototypes: Tensor, m: int, *, metric: str = "cosine",
                   prototype_rnorm: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The m nearest prototypes of each token, best first. Never stores tokens x prototypes.

    Args:
        tokens: `[B, N, D]` or `[T, D]`, float32, float16 or bfloat16, any strides. With grouped prototypes
            `[B, N, G, d]` or `[T, G, d]`.
        prototypes: `[P, D]`, P >= 1, dtype and device of `tokens`, any strides; or grouped `[G, P, d]`.
        m: how many, 1 <= m <= P. A host number, so the output shape is static.
        metric: `"cosine"`; `"dot"` for the plain inner product; `"l2"` for the negative squared distance.
        prototype_rnorm: `[P]` float32 reciprocal L2 norms of the prototypes (0 for a zero prototype), to save their
            computation; only with `"cosine"` and without groups.

    Returns:
        scores: `[.., m]` float32, the leading dimensions of `tokens`: similarities, numbers as in `prototype_scores`.
        indices: `[.., m]` int64 prototypes, all distinct.

    Ties and NaN: the order is that of `<x, p> / |p|`, `<x, p>` or `<x, p> - |p|^2 / 2` (the norm of the token, which
    all its prototypes share, is applied to what was selected). Equal similarities go to the lower index, and NaN ranks
    last, as in a selection and other than in the maximum of `prototype_scores`, which reports it. The result for a
    token does not depend on other tokens, and repeats bitwise on one device and configuration.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: shapes, devices, m or a metric that do not fit.
        RuntimeError: the same from the native backends, or an input that requires a gradient.

    Example:
        >>> experts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
        >>> vtkernels.prototype_topm(torch.tensor([[2.0, 0.0]]), experts, 2)
        (tensor([[1.0000, 0.7071]]), tensor([[0, 2]]))

    Source: routing by prototypes as in ProMoE (ICLR 2026); k nearest codewords.
    """
    no_grad_needed("prototype_topm", tokens=tokens, prototypes=prototypes)
    return _op(tokens, prototypes, m, metric=metric, prototype_rnorm=prototype_rnorm)
