"""One call of an op, as it is timed."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Call:
    """One call of an op. Peers take `peer_args`: the same tensors, with metadata as host numbers where that helps."""

    args: tuple
    kwargs: dict[str, Any]
    peer_args: tuple
    source: str
    scratch: dict[str, Tensor] = field(default_factory=dict)

    def clone(self) -> "Call":
        """The same call on other memory, for rotating buffers."""
        copies: dict[int, Tensor] = {}

        def copy(value: Any) -> Any:
            if isinstance(value, Tensor):
                return copies.setdefault(id(value), value.clone())
            return type(value)(copy(v) for v in value) if isinstance(value, (list, tuple)) else value

        kwargs = {name: copy(v) for name, v in self.kwargs.items()}
        return Call(copy(self.args), kwargs, copy(self.peer_args), self.source)
