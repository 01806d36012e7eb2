"""Score video tokens by what changed since the previous frame."""

from torch import Tensor

from ..._checks import no_grad_needed
from ..._library import OPS

_op = OPS.temporal_scores.default


def temporal_scores(tokens: Tensor, *, metric: str = "cosine", first: float | None = None) -> Tensor:
    """Compare each token with the token in the same place of the previous frame. Each frame is read once.

    Args:
        tokens: `[B, F, N, D]`, float32, float16 or bfloat16, any strides.
        metric: `"cosine"`: `<x, y> / (|x| |y|)`; `"l1"`: `sum |x - y|`; `"l2"`: `sqrt(sum (x - y)^2)`.
        first: the score of every token of frame 0, which has no previous frame. None means "nothing like it": -inf
            for `"cosine"`, +inf for `"l1"` and `"l2"`.

    Returns:
        `[B, F, N]` float32. `"cosine"` is higher where less changed, `"l1"` and `"l2"` where more did.

    Numbers: differences, products and sums in float32. A token whose squared norm is under the smallest normal float32
    counts as zero and has cosine 0; one whose squared norm overflows float32 has cosine NaN. NaN and infinities give
    what float32 arithmetic gives. The score of a token depends only on the two frames that it compares, and repeats
    bitwise on one device and configuration.

    Raises:
        TypeError: a dtype or layout that is not allowed.
        ValueError: tokens that are not 4-D, or an unknown metric.
        RuntimeError: the same from the native backends, or an input that requires a gradient.

    Example:
        >>> frames = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]).view(1, 3, 1, 2)
        >>> vtkernels.temporal_scores(frames)[0, :, 0]
        tensor([-inf, 1., 0.])
        >>> vtkernels.temporal_scores(frames, metric="l1", first=9)[0, :, 0]
        tensor([9., 0., 3.])

    Source: the frame-to-frame similarity of differential token drop (TimeChat-Online, arXiv 2504.17343) and of EVS.
    """
    no_grad_needed("temporal_scores", tokens=tokens)
    return _op(tokens, metric=metric, first=first)
