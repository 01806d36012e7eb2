"""The main job on real photographs: tokens, score, select, gather, a table and a picture for each.

`python -m vtkernels demo` runs it. It needs the extra packages of `pip install 'vtkernels[demo]'`, imported only here.
"""

from importlib import import_module
from typing import Any


class DemoError(Exception):
    """Something the user can put right, in one line."""


def need(module: str, package: str) -> Any:
    """Import a package of the demo extra, or say how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise DemoError(f"the demo needs {package}, which cannot be imported ({error}): "
                        "pip install 'vtkernels[demo]'") from error
