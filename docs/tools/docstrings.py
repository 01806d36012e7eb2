"""Docstrings of this package as Markdown."""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

SECTION = re.compile(r"^(Args|Returns|Raises|Example|Inputs|Source):$")
ENTRY = re.compile(r"^([A-Za-z_]\w*(?:, \w+)*)(?:: (.*))?$")
WIDTH = 100


def signature(obj: Any, name: str, *first: str) -> str:
    """The call as it is written in the source, behind arguments of one's own; a parameter a line where it is long."""
    if dataclasses.is_dataclass(obj):
        shown = [f"{f.name}: {_annotation(f.type)}{_default(f)}" for f in dataclasses.fields(obj) if f.init]
        returns = ""
    elif hasattr(obj, "_field_defaults"):  # a NamedTuple
        shown = [f"{f}: {_annotation(kind)}" for f, kind in obj.__annotations__.items()]
        returns = ""
    else:
        function = obj.__init__ if inspect.isclass(obj) else obj
        node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        assert isinstance(node, ast.FunctionDef)
        shown = [ast.unparse(p) for p in _parameters(node.args)]
        shown = shown[1:] if shown[:1] == ["self"] else shown
        returns = "" if inspect.isclass(obj) or node.returns is None else f" -> {ast.unparse(node.returns)}"
    shown = [*first, *shown]
    line = f"{name}({', '.join(shown)}){returns}".replace("'", '"')
    if len(line) <= WIDTH:
        return line
    body = "".join(f"    {part},\n" for part in shown).replace("'", '"')
    return f"{name}(\n{body}){returns}"


def _parameters(args: ast.arguments) -> Iterator[ast.AST]:
    """Each parameter with its default, the bare star among them."""
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    for arg, default in zip(plain, defaults, strict=True):
        yield _with_default(arg, default)
    if args.vararg or args.kwonlyargs:
        yield ast.Name(f"*{ast.unparse(args.vararg) if args.vararg else ''}")
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield _with_default(arg, default)
    if args.kwarg:
        yield ast.Name(f"**{ast.unparse(args.kwarg)}")


def _with_default(arg: ast.arg, default: ast.expr | None) -> ast.AST:
    equals = "=" if arg.annotation is None else " = "
    return arg if default is None else ast.Name(f"{ast.unparse(arg)}{equals}{ast.unparse(default)}")


def _annotation(kind: Any) -> str:
    text = kind if isinstance(kind, str) else inspect.formatannotation(kind)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", text)


def _default(field: Any) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
        return f" = {value.__name__ if callable(value) and hasattr(value, '__name__') else repr(value)}"
    return "" if field.default_factory is dataclasses.MISSING else " = .."


def attributes(obj: Any) -> str:
    """Documented properties and functions of a class, as a list; empty where there are none."""
    found = []
    for name, member in vars(obj).items():
        kind = isinstance(member, (property, classmethod)) or inspect.isfunction(member)
        if kind and member.__doc__ and not name.startswith("_"):
            call = name if isinstance(member, property) else f"{name}(..)"
            found.append(f"- `.{call}`: {summary(member)}")
    return "\n".join(found)


def summary(obj: Any) -> str:
    """The first sentence."""
    first = _text(obj).split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[^.]\.) (?=[A-Z`])", first)[0]


def markdown(obj: Any) -> str:
    """The docstring: arguments and errors as lists, examples as code, the rest as it is written."""
    out: list[str] = []
    lines = _text(obj).splitlines()
    while lines:
        found = SECTION.match(lines[0])
        if not found:
            out.append(_plain(lines.pop(0)))
            continue
        end = next((i for i, line in enumerate(lines[1:], 1) if line and not line.startswith(" ")), len(lines))
        body = textwrap.dedent("\n".join(lines[1:end])).strip()
        lines = lines[end:]
        out += ["", _section(found[1], body), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def _text(obj: Any) -> str:
    text = inspect.cleandoc(obj.__doc__ or "")
    if not text:
        raise ValueError(f"{obj!r} has no docstring of its own")
    return text


def _plain(line: str) -> str:
    """A line of prose: what looks like a tag outside of code is escaped, a known lead is set off."""
    parts = re.split(r"(`[^`]*`)", line)
    line = "".join(p if p.startswith("`") else p.replace("<", "&lt;") for p in parts)
    return re.sub(r"^(Ties and NaN|Numbers and NaN|Numbers|Memory|Inputs|Result|Source):(?= )", r"**\1:**", line)


def _section(title: str, body: str) -> str:
    if title == "Example":
        return f"**Example**\n\n```pycon\n{re.sub(r'  # doctest: .*', '', body)}\n```"
    entries = _entries(body)
    text = "\n".join(f"- {entry}" for entry in entries) if entries else "\n".join(map(_plain, body.splitlines()))
    return f"**{'Arguments' if title == 'Args' else title}**\n\n{text}"


def _entries(body: str) -> list[str]:
    """Lines of `name: text` with their continuations; nothing when the text is prose."""
    entries: list[str] = []
    for line in body.splitlines():
        found = ENTRY.match(line)
        if found:
            names = ", ".join(f"`{name}`" for name in found[1].split(", "))
            entries.append(f"{names}: {_plain(found[2])}" if found[2] else names)
        elif entries and (line.startswith(" ") or not line):
            entries[-1] += f"\n  {_plain(line.strip())}" if line else "\n"
        else:
            return []
    return entries
