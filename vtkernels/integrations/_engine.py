"""What the plug-ins of serving engines share: a method from the engine's configuration, the exact number of tokens that
it keeps, its tensors where the tokens are."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from .. import methods, prototypes

SIGNALS = ("hidden", "grid")  # what an engine has before the language model
Grid = tuple[int, int, int]


def exact_count(engine: str, method: methods.Method, tokens: int, width: int, grid: Grid | None,
                needs_indices: bool = False) -> int:
    """How many of so many tokens stay: those of a run on tensors without data. Host only.

    Raises:
        ValueError: a method that gives no exact count, other rows than tokens, or none at all.
    """
    name = method.info.name
    hidden = torch.empty(1, tokens, width, device="meta")
    try:
        result = method(methods.Inputs(hidden=hidden, grid=grid))
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{engine}: `method` is {name!r}, which cannot run on {tokens} tokens of grid {grid} "
                         f"(frames, rows, columns): {error}") from error
    if result.counts is not None:
        raise ValueError(f"{engine}: `method` is {name!r}, whose counts depend on the image, allowed: methods that "
                         "keep an exact number, which the engine must know before the encoder runs")
    if result.hidden is None or result.hidden.dim() != 3 or result.hidden.shape[2] != width:
        raise ValueError(f"{engine}: `method` is {name!r}, which does not return tokens of the model's width "
                         f"{width}, allowed: methods that select or merge tokens")
    count = result.hidden.shape[1]
    if needs_indices and (result.indices is None or tuple(result.indices.shape) != (1, count)):
        raise ValueError(f"{engine}: `method` is {name!r}, which does not say where its tokens stood, allowed: methods "
                         "whose results have `indices`, since the tokens of this model have positions in the grid")
    if not 1 <= count <= tokens:
        raise ValueError(f"{engine}: `method` is {name!r}, which makes {count} of {tokens} tokens, allowed: 1 to "
                         f"{tokens}")
    return count


def moved(method: methods.Method, device: torch.device, dtype: torch.dtype) -> methods.Method:
    """The same with the method's tensors, such as prototypes, where the tokens are."""
    held = {f.name: getattr(method, f.name) for f in fields(method) if f.init}  # type: ignore[arg-type]
    tensors = {name: value.to(device, dtype) for name, value in held.items() if isinstance(value, Tensor)}
    return replace(method, **tensors)  # type: ignore[type-var]


def method_of(engine: str, argument: str, key: str, entry: Any) -> methods.Method:
    """The method of `{"method": name, ..}`, as the engine's `argument` has it under `key`.

    Raises:
        ValueError: a method or an argument that there is not, a signal that the engine lacks, a wrong share.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("method"), str):
        raise ValueError(f"{engine}: `{argument}` has {entry!r} under {key!r}, allowed: {{'method': name, ..}}")
    name, config = entry["method"], {k: v for k, v in entry.items() if k != "method"}
    kind = methods.methods().get(name)
    if kind is None:
        raise ValueError(f"{engine}: `method` is {name!r}, allowed: {', '.join(usable())}")
    missing = [need for need in kind.info.needs if need not in SIGNALS]
    if missing or kind.info.family == "cache":
        why = f"needs {', '.join(missing)}" if missing else "acts on the cache of the language model"
        raise ValueError(f"{engine}: `method` is {name!r}, which {why}; the engine has hidden and grid before the "
                         f"language model, allowed: {', '.join(usable())}")
    allowed = [f.name for f in fields(kind) if f.init]  # type: ignore[arg-type]
    wrong = [argument for argument in config if argument not in allowed]
    if wrong:
        raise ValueError(f"{engine}: `method` is {name!r}, which has no {', '.join(wrong)}, allowed: "
                         f"{', '.join(allowed)}")
    _check_share(engine, config)
    if isinstance(config.get("prototypes"), str):
        config["prototypes"] = prototypes.load(config["prototypes"]).prototypes
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    return methods.get(name, **config)


def _check_share(engine: str, config: dict[str, Any]) -> None:
    keep, rate = config.get("keep", 1.0), config.get("pruning_rate", 0.0)
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not keep > 0 or (
            isinstance(keep, float) and not keep <= 1):
        raise ValueError(f"{engine}: `keep` is {keep!r}, allowed: a share above 0.0 up to 1.0, or a number of tokens "
                         "from 1")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise ValueError(f"{engine}: `pruning_rate` is {rate!r}, allowed: 0.0 up to, but not, 1.0")


def usable() -> list[str]:
    """Methods before the language model that need no more than the tokens and their grid."""
    return [name for name, kind in methods.methods().items()
            if set(kind.info.needs) <= set(SIGNALS) and kind.info.family in ("selection", "merging")]
