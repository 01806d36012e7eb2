"""A shape of an op, with the fewest bytes and operations that it needs.

Bytes: every input byte that is needed read once, every output byte written once. Operations: two per multiply-add.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

DTYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class Counts(NamedTuple):
    bytes: int
    flops: int


@dataclass(frozen=True)
class Case:
    """One shape of one op. `groups` say where it runs by default; the goals are limits of the project's plan."""

    op: str
    shape: str
    dtype: torch.dtype
    groups: tuple[str, ...]
    B: int = 1
    N: int = 0
    D: int = 0
    P: int = 0
    H: int = 0
    d: int = 0
    layers: int = 0
    F: int = 0    # frames, or segments of a row
    Tq: int = 0   # query rows
    Hkv: int = 0  # heads of the keys
    K: int = 0    # clusters
    option: str = ""  # the variant of the op: an objective, a metric
    keep: float = 0.2
    lengths: tuple[int, ...] = ()  # tokens of each packed sequence
    goal_us: float | None = None
    goal_copy_share: float | None = None

    @property
    def name(self) -> str:
        return f"{self.shape}-{DTYPE_NAMES[self.dtype]}"

    @property
    def k(self) -> int:
        return round(self.keep * self.N)

    @property
    def ks(self) -> tuple[int, ...]:
        return tuple(round(self.keep * n) for n in self.lengths)

    @property
    def tokens(self) -> int:
        return sum(self.lengths) if self.lengths else self.B * self.N

    @property
    def kept(self) -> int:
        return sum(self.ks) if self.lengths else self.B * self.k

    def counts(self) -> Counts:
        return COUNTS[self.op](self)


COUNTS: dict[str, Callable[[Case], Counts]] = {}  # filled by the registry and the families
