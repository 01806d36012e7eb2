"""Cases that fail for a reason that is known and not mended yet: counted and named, never judged.

Each is also a stored case in seeds.json, expected to fail there until it is mended; both entries then go.
"""

from collections.abc import Callable
from typing import NamedTuple

from vtkernels.testing import Sample


class Known(NamedTuple):
    ops: tuple[str, ...]
    reason: str
    concerns: Callable[[Sample], bool]


KNOWN = (
    Known(("attention_scores", "attention_scores_varlen"),
          "cpu: with logits=True infinite products of other signs are summed before they are formed",
          lambda s: s.kwargs["logits"] and not all(t.isfinite().all() for t in s.args[:2])),
)


def known_reason(op: str, sample: Sample) -> str | None:
    return next((k.reason for k in KNOWN if op in k.ops and k.concerns(sample)), None)
