"""MAVIS: a LLaVA-architecture model, whose visual tokens any method here can reduce."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ._inputs import Inputs, Result, Stage
from ._method import Info, Method
from ._registry import get, register


@register(Info("mavis", "MAVIS (another method in its model)", "ICLR 2025, arXiv 2407.08739", "other", "other",
               ("hidden",), "other", "paper", "none"))
@dataclass(frozen=True)
class MAVIS(Method):
    """MAVIS is data and training for mathematical diagrams, and has no reduction of its own. Its model has LLaVA's
    architecture, so that every method for LLaVA runs in it; this one runs the method that is named.

    Args:
        method: a name of `vtkernels.methods.list()`.
        config: its configuration; what is absent has published defaults.

    Inputs, result, schedule, ties and NaN are those of the method that is named. Diagrams of thin lines are a hard case
    for it: nothing is claimed of the answers.

    Source: Zhang et al., "MAVIS: Mathematical Visual Instruction Tuning with an Automatic Data Engine", ICLR 2025,
    arXiv 2407.08739; the pairing is ours.
    """

    method: str = "divprune"
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return get(self.method, **self.config).stages

    def __call__(self, inputs: Inputs, *, stage: int = 0) -> Result:
        self._check(inputs, stage)
        return get(self.method, **self.config)(inputs, stage=stage)
