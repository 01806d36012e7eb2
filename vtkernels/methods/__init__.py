"""Published methods of visual-token reduction, one small file each over the ops.

`list()` names them, `get(name, **config)` gives one with its published defaults; it takes `Inputs` and returns a
`Result`, so that one can be swapped for another in one word. A signal that is missing is a clear error. None of them
waits for the device, and a row's result does not depend on the batch that it stands in.
"""

from ._inputs import Attention, Inputs, Result, Stage
from ._method import Info, Method, batch
from ._registry import get, list, methods, register

__all__ = ["Attention", "Info", "Inputs", "Method", "Result", "Stage", "batch", "get", "list", "methods", "register"]
