"""The reference: a page per stage, one of the rest of the package, and one of the methods, from docstrings."""

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import vtkernels
from vtkernels import _dispatch, _library
from vtkernels.methods import _registry

from . import docstrings, table

STAGES = {
    "score": "How much each token matters, or how redundant it is.",
    "select": "Which tokens stay, how many, and which belong together.",
    "compact": "What is aligned with the tokens, moved, merged, pooled, turned or quantised.",
    "attend": "Attention that no library has. Masks and biases for `flex_attention` are on the page "
              "[Package](package.md#patterns).",
    "fused": "Score, select and compact in one pass.",
}
# Functions beside the ops, on the page of the stage whose module defines them.
MODULES = ("nn", "methods", "prototypes", "attend", "patterns")


def pages() -> dict[str, str]:
    """Every page by its path under docs/."""
    out = {f"reference/{stage}.md": _stage(stage) for stage in STAGES}
    return {"reference/index.md": _index(), **out, "reference/package.md": _package(),
            "reference/methods.md": _methods()}


def functions(stage: str) -> dict[str, Any]:
    """Public functions of a stage: its ops in the order of the library, then what stands beside them."""
    ops = {op: getattr(vtkernels, op) for op, of in _dispatch.STAGES.items() if of == stage}
    rest = {name: obj for name, obj in _public() if name not in ops and not name.startswith("workspace")
            and inspect.isfunction(obj) and obj.__module__.startswith(f"vtkernels.{stage}.")}
    return ops | rest


def _public() -> Iterator[tuple[str, Any]]:
    for name in vtkernels.__all__:
        yield name, getattr(vtkernels, name)


def _index() -> str:
    parts = ["# Operators", "Every op is a function of `vtkernels` and an op of torch, `torch.ops.vtkernels.<name>`, "
             "with the same keyword names. The function checks its arguments, names what is wrong, and gives gradients "
             "where the op has them. The `.out` variant of each op writes into buffers of the caller: int32 or int64 "
             "indices, a `workspace` and a `status` word, and no wait for the device. What all of them keep is on "
             "[Reliability](../reliability.md). The examples run as tests."]
    for stage, text in STAGES.items():
        rows = [(f"[`{name}`]({stage}.md#{name})", docstrings.summary(obj)) for name, obj in functions(stage).items()]
        parts += [f"## {stage.capitalize()}", text, table(("function", "what it does"), rows)]
    parts += ["## Beside the ops", "[Package](package.md): which backend runs, modules, codebooks, attention patterns. "
              "[Methods](methods.md): every published method."]
    return "\n\n".join(parts) + "\n"


def _stage(stage: str) -> str:
    parts = [f"# {stage.capitalize()}", STAGES[stage]]
    for name, obj in functions(stage).items():
        parts.append(_entry(obj, name, f"vtkernels.{name}"))
        if name in _dispatch.STAGES:
            schemas = "\n".join(f"{op}{_library.SCHEMAS[op]}" for op in (name, f"{name}.out"))
            parts.append(f"??? info \"Schema\"\n\n    ```text\n{_indent(schemas)}\n    ```")
    return "\n\n".join(parts) + "\n"


def _entry(obj: Any, name: str, call: str, *first: str, level: int = 2, text: str = "") -> str:
    parts = [f"{'#' * level} {name} {{ #{name} data-toc-label=\"{name}\" }}", text,
             f"```python\n{docstrings.signature(obj, call, *first)}\n```", docstrings.markdown(obj)]
    if inspect.isclass(obj) and (more := docstrings.attributes(obj)):
        parts.append(f"**Of an instance**\n\n{more}")
    return "\n\n".join(filter(None, parts))


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _package() -> str:
    parts = ["# Package", "`vtkernels.__version__` is the version. `python -m vtkernels info` prints it with those of "
             "torch and Triton, and which native libraries are built.",
             *(_entry(getattr(vtkernels, name), name, f"vtkernels.{name}") for name in ("explain", "workspace_size"))]
    for name in MODULES:
        module = importlib.import_module(f"vtkernels.{'attend.' * (name == 'patterns')}{name}")
        parts.append(f"## vtkernels.{'attend.' * (name == 'patterns')}{name} {{ #{name} }}")
        parts.append(docstrings.markdown(module))
        for member, obj in members(module).items():
            if inspect.ismodule(obj):
                continue
            call = f"{module.__name__}.{member}"
            if callable(obj):
                parts.append(_member(obj, f"{name}.{member}", call))
            else:
                parts.append(f"### {name}.{member} {{ #{name}.{member} }}\n\n`{call}`: the path "
                             f"`vtkernels/{name}/{obj.name}`.")
    return "\n\n".join(parts) + "\n"


def members(module: Any) -> dict[str, Any]:
    """What a module offers: its `__all__`, or the classes and functions that it defines."""
    names = getattr(module, "__all__", None) or [
        n for n, o in vars(module).items() if not n.startswith("_") and getattr(o, "__module__", "") == module.__name__
        and (inspect.isclass(o) or inspect.isfunction(o))]
    return {name: getattr(module, name) for name in names}


def _member(obj: Any, name: str, call: str) -> str:
    is_error = inspect.isclass(obj) and issubclass(obj, Exception)
    if is_error or obj is vtkernels.methods.Method:
        return f"### {name} {{ #{name} }}\n\n{docstrings.markdown(obj)}"
    return _entry(obj, name, call, level=3)


def _methods() -> str:
    parts = ["# Methods", "`vtkernels.methods.get(name, ..)` gives a method; arguments that are not named keep the "
             "defaults that stand here, the published ones. [The table](../methods.md) says where each acts, what it "
             "needs and how it was tested."]
    family = None
    for name, method in _registry.methods().items():
        if method.info.family != family:
            family = method.info.family
            parts.append(f"## {family.capitalize()}")
        info = method.info
        text = f"{info.title} ({info.source}). Acts at: {info.place}. Needs: {', '.join(info.needs)}."
        parts.append(_entry(method, name, "methods.get", f'"{name}"', level=3, text=text))
    return "\n\n".join(parts) + "\n"
