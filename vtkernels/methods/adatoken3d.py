"""AdaToken-3D: the schedule of PyramidDrop for the spatial tokens of 3-D models."""

from dataclasses import dataclass

from ._method import Info
from ._registry import register
from .pyramiddrop import PyramidDrop


@register(Info("adatoken3d", "AdaToken-3D", "IROS 2025, arXiv 2505.12782", "selection", "decoder layer",
               ("hidden", "decoder"), "exact", "code", "attention"))
@dataclass(frozen=True)
class AdaToken3D(PyramidDrop):
    """The rule of `PyramidDrop` on spatial tokens, with schedules of its own.

    Args:
        layers: decoder layers after which a stage acts.
        keep: what each stage keeps: a share of the original tokens (rounded down), or how many. The default is that of
            LLaVA-3D's chat; ScanQA and SQA3D take (0.8, 0.6, 0.4).
        all_rows: the mean over all rows of the query that count.

    Inputs, ties and NaN as in `PyramidDrop`. How the paper derives a schedule from attention statistics of the model
    is not in the released code; schedules are given here.

    Source: AdaToken-3D, IROS 2025, arXiv 2505.12782; details as in the official code.
    """

    keep: tuple[float | int, ...] = (0.8, 0.5, 0.25)
