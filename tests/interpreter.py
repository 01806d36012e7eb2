"""Triton's interpreter without what costs it the most time.

Each call of a device function makes it list all of `triton.language` again, to patch what is patched already. Here the
names are listed once; what gets patched, and with what, stays the interpreter's business.
"""

import inspect
from functools import cache
from typing import Any

from triton.language.core import is_builtin
from triton.runtime import interpreter


@cache
def _builtins(package: Any) -> list[str]:
    return [name for name, member in inspect.getmembers(package) if is_builtin(member)]


def _patch_builtin(package: Any, *context: Any) -> None:
    for name in _builtins(package):
        member = getattr(package, name)
        if not is_builtin(member):
            return  # patched already, as all of them are then
        interpreter._patch_attr(package, name, member, *context)


def quicken() -> None:
    interpreter._patch_builtin = _patch_builtin
