"""The methods by name, and the table of them."""

import builtins
import importlib
import pkgutil
from functools import cache
from typing import Any, TypeVar

from ._method import Info, Method

_METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register(info: Info) -> Any:
    """Class decorator: the class is the method of this name."""

    def add(cls: M) -> M:
        if info.name in _METHODS:
            raise ValueError(f"register: `name` is {info.name!r}, which {_METHODS[info.name].__name__} has already")
        cls.info = info
        _METHODS[info.name] = cls
        return cls

    return add


@cache
def _load() -> None:
    package = importlib.import_module(__package__ or "")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__package__}.{module.name}")


def methods() -> dict[str, type[Method]]:
    """The class of every method, by name, in the order of families and names."""
    from ._method import FAMILIES

    _load()
    return dict(sorted(_METHODS.items(), key=lambda m: (FAMILIES.index(m[1].info.family), m[0])))


def list(family: str | None = None) -> builtins.list[str]:
    """Names of the methods, of one family or all.

    Example:
        >>> "fastv" in vtkernels.methods.list()
        True
    """
    return [name for name, method in methods().items() if family in (None, method.info.family)]


def get(name: str, **config: Any) -> Method:
    """A method by name, with published defaults where `config` does not say otherwise.

    Example:
        >>> method = vtkernels.methods.get("fastv", keep=0.25)
        >>> image = torch.randn(1, 64, 32)
        >>> layer = vtkernels.methods.Attention(torch.randn(1, 4, 1, 8), torch.randn(1, 4, 80, 8), start=10)
        >>> method(vtkernels.methods.Inputs(hidden=image, decoder=(layer,))).hidden.shape
        torch.Size([1, 16, 32])

    Raises:
        ValueError: no method of this name.
        TypeError: a configuration that the method does not have.
    """
    if name not in methods():
        raise ValueError(f"get: `name` is {name!r}, allowed: {', '.join(methods())}")
    return methods()[name](**config)
