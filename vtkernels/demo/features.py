"""Real features from a safetensors file, in place of photographs."""

from pathlib import Path

from torch import Tensor

from .._checks import FLOATS, names
from ..prototypes import CodebookError
from ..prototypes.io import read_safetensors
from . import DemoError


def read_features(path: Path) -> Tensor:
    """`[B, N, D]` from the tensor `features` of a file, or from its only tensor; `[N, D]` counts as one row.

    NaN and infinite values are data: such tokens are dropped first.

    Raises:
        DemoError: a file, name, rank, size or dtype that does not fit.
    """
    try:
        _, tensors, _ = read_safetensors(path)
    except CodebookError as error:
        raise DemoError(str(error)) from error
    if "features" not in tensors and len(tensors) != 1:
        raise DemoError(f"{path}: holds the tensors {', '.join(map(repr, tensors)) or '(none)'}, "
                        "allowed: one named 'features', or a single tensor")
    features = tensors["features"] if "features" in tensors else next(iter(tensors.values()))
    if features.dtype not in FLOATS:
        raise DemoError(f"{path}: the features are {names([features.dtype])}, allowed: {names(FLOATS)}")
    if features.dim() not in (2, 3) or 0 in features.shape:
        raise DemoError(f"{path}: the features have shape {tuple(features.shape)}, "
                        "allowed: [N, D] or [B, N, D], not empty")
    return features if features.dim() == 3 else features[None]
