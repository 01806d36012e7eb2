"""Write the ops' schemas as C++ string literals, which a process without Python needs beside the native library."""

import sys
from pathlib import Path

from vtkernels import _library

Path(sys.argv[1]).write_text("".join(f'"{_library.NAMESPACE}::{name}{schema}",\n'
                                     for name, schema in _library.SCHEMAS.items()))
