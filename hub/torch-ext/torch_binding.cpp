// Makes the extension importable. The kernels register in csrc/torch, the schemas in _library.py.
#include "registration.h"

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
