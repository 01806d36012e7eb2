"""Learned parts in the dtype of the inputs."""

from copy import deepcopy
from typing import Any

from torch import Tensor


def like(module: Any, x: Tensor) -> Any:
    """The module itself where its parameters are of the dtype and device of x, so that no copy is timed."""
    if all(p.dtype == x.dtype and p.device == x.device for p in module.parameters()):
        return module
    return deepcopy(module).to(x)
