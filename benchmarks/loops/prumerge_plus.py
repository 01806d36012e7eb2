"""LLaVA-PruMerge+ as PruMerge's loop, with an arithmetic sequence of positions added."""

from typing import Any

from vtkernels.methods import Inputs, Result

from . import prumerge
from .prumerge import inputs

__all__ = ["TYPICAL", "VARIANTS", "inputs", "loop"]

VARIANTS = {"default": {"neighbours": 5}, "end": {"neighbours": 4, "quirk_end": True},
            "low_fence": {"neighbours": 8, "fence": 0.8}}
TYPICAL: dict = {}


def sampled(method: Any, ratio: float, n: int) -> set[int]:
    if not ratio:
        return set()
    return set(range(0, n - 1 if method.quirk_end else n, max(1, int(int(1 / ratio) / 3))))


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    return prumerge.loop(method, inputs, stage, sampled)
