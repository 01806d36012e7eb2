"""What a mutant is."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """`code` stands once in `file`, `replacement` in its place; `tests` are pytest arguments that should fail."""

    name: str
    file: str
    code: str
    replacement: str
    tests: tuple[str, ...]
    survives: str = ""  # why no test of the GPU-less suite can find it

    @property
    def id(self) -> str:
        return f"{self.file.rpartition('/')[2]}: {self.name}"


def drawn(*ops: str) -> tuple[str, ...]:
    """The fuzzer's slice of these ops."""
    return tuple(f"tests/fuzz/test_fuzz.py::test_a_slice[{op}]" for op in ops)


def files(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_{name}.py" for name in names)
