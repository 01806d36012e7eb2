"""What a family of ops tells the suite about each of its ops."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..call import Call
from ..case import Case, Counts


@dataclass(frozen=True)
class Family:
    cases: tuple[Case, ...]
    counts: Callable[[Case], Counts]
    make: Callable[[Case, torch.device], Call]
    peers: dict[str, Callable]                         # "eager" is the usual code; each takes `Call.peer_args`
    check: Callable[[Case, Call, Any], None]           # ours; AssertionError when it is wrong
    check_peer: Callable[[Case, Call, Any, Any], None]  # theirs, ours
    compiles: bool = True                              # whether `torch.compile` of the peers makes sense
