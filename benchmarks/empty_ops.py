"""Ops with the schemas of ours and an empty body, in C++ over the same ABI: what torch itself asks for a call.

They release their arguments and allocate their outputs, one element each, as every op must.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

from vtkernels._library import SCHEMAS

NAMESPACE = "vtkernels_empty"

SOURCE = r"""
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

namespace {
using torch::stable::detail::to;

struct Plain {
  static void drop(StableIValue) {}
};
using int_ = Plain;
using bool_ = Plain;
using float_ = Plain;
struct str_ {
  static void drop(StableIValue v) { torch_delete_string(to<StringHandle>(v)); }
};
struct Tensor_ {
  static void drop(StableIValue v) { aoti_torch_delete_tensor_object(to<AtenTensorHandle>(v)); }
  static StableIValue make() {
    const int64_t one = 1;
    AtenTensorHandle handle = nullptr;
    aoti_torch_empty_strided(1, &one, &one, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, &handle);
    return torch::stable::detail::from(handle);
  }
};
size_t entries;  // of the last list argument: as many as a list result has
template <class T>
struct List_ {
  static void drop(StableIValue v) {
    const auto list = to<StableListHandle>(v);
    torch_list_size(list, &entries);
    for (size_t i = 0; i < entries; ++i) {
      StableIValue item;
      torch_list_get_item(list, i, &item);
      T::drop(item);
    }
    torch_delete_list(list);
  }
  static StableIValue make() {
    StableListHandle list = nullptr;
    torch_new_list_reserve_size(entries, &list);
    for (size_t i = 0; i < entries; ++i) torch_list_push_back(list, T::make());
    return torch::stable::detail::from(list);
  }
};
template <class T>
struct Optional_ {
  static void drop(StableIValue v) {
    if (const auto inner = to<std::optional<StableIValue>>(v)) T::drop(*inner);
  }
};
template <class... In>
struct Arguments {
  template <class... Out>
  static void call(StableIValue* stack, uint64_t, uint64_t) {
    [[maybe_unused]] auto* next = stack;
    (In::drop(*next++), ...);
    next = stack;
    ((*next++ = Out::make()), ...);
  }
};
}  // namespace

STABLE_TORCH_LIBRARY_IMPL(%s, CPU, m) {
%s
}
"""


def _types(values: Iterable) -> str:
    """The types of arguments or results, as the classes above name them."""
    return ", ".join(re.sub(r"(\w+)", r"\1_", str(v.type)).replace("[", "<").replace("]", ">") for v in values)


def load(names: Iterable[str]) -> torch.library.Library:
    """Define and compile the ops, which live as long as the result. Raises `OSError` where there is no compiler."""
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    lines = []
    for name in names:
        library.define(name + SCHEMAS[name])
        parsed = torch._C.parse_schema(f"{NAMESPACE}::{name}{SCHEMAS[name]}")
        lines.append(f'  m.impl("{name}", &Arguments<{_types(parsed.arguments)}>::call<{_types(parsed.returns)}>);')
    libraries = Path(torch.__file__).parent / "lib"
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder, "empty_ops.cpp"), Path(folder, "empty_ops.so")
        source.write_text(SOURCE % (NAMESPACE, "\n".join(lines)))
        subprocess.run([os.environ.get("CXX", "c++"), "-std=c++17", "-O2", "-fPIC", "-shared",
                        "-DTORCH_TARGET_VERSION=0x020A000000000000", *(f"-isystem{p}" for p in include_paths()),
                        str(source), "-o", str(built), f"-L{libraries}", "-ltorch", "-ltorch_cpu"], check=True)
        torch.ops.load_library(str(built))
    return library
