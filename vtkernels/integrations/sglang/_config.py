"""Which method prunes the tiles of a model, and how many tokens of each tile it keeps."""

from dataclasses import fields, replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ... import methods, prototypes

KEY = "vtkernels"  # of the engine's `--json-model-override-args`; reaches the processor and the model
SIGNALS = ("hidden", "grid")


class Pruner:
    """A method for tiles of `tokens` tokens of one width. `count` of them stay, whatever the image shows.

    Raises:
        ValueError: a method that gives no exact count, other rows than tokens, or none at all.
    """

    def __init__(self, method: methods.Method, tokens: int, width: int) -> None:
        side = isqrt(tokens)
        self.method, self.tokens = method, tokens
        self.grid = (1, side, side) if side * side == tokens else None
        name = method.info.name
        try:
            result = method(methods.Inputs(hidden=torch.empty(1, tokens, width, device="meta"), grid=self.grid))
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"sglang: `method` is {name!r}, which cannot run on tiles of {tokens} tokens: "
                             f"{error}") from error
        if result.counts is not None:
            raise ValueError(f"sglang: `method` is {name!r}, whose counts depend on the image, allowed: methods that "
                             "keep an exact number, which the engine must know before the encoder runs")
        if result.hidden is None or result.hidden.dim() != 3 or result.hidden.shape[2] != width:
            raise ValueError(f"sglang: `method` is {name!r}, which does not return tokens of the model's width "
                             f"{width}, allowed: methods that select or merge tokens")
        self.count = result.hidden.shape[1]
        if not 1 <= self.count <= tokens:
            raise ValueError(f"sglang: `method` is {name!r}, which makes {self.count} of {tokens} tokens, allowed: 1 "
                             f"to {tokens}")
        self._moved: dict[tuple[torch.device, torch.dtype], methods.Method] = {}

    def __call__(self, features: Tensor) -> Tensor:
        """`[tiles, tokens, width]` to `[tiles, count, width]`, each tile by itself."""
        if features.dim() != 3 or features.shape[1] != self.tokens:
            raise ValueError(f"sglang: the features of a tile are of shape {tuple(features.shape)}, allowed: [tiles, "
                             f"{self.tokens}, D], for which the placeholders were counted")
        with torch.no_grad():
            pruned = self._on(features)(methods.Inputs(hidden=features, grid=self.grid)).hidden
        assert pruned is not None  # __init__ has seen it
        return pruned

    def _on(self, features: Tensor) -> methods.Method:
        """The method with its tensors, such as prototypes, where the features are."""
        place = features.device, features.dtype
        if place not in self._moved:
            held = {f.name: getattr(self.method, f.name) for f in fields(self.method) if f.init}  # type: ignore[arg-type]
            moved = {name: value.to(*place) for name, value in held.items() if isinstance(value, Tensor)}
            self._moved[place] = replace(self.method, **moved)  # type: ignore[type-var]
        return self._moved[place]


def read(config: Any) -> Pruner | None:
    """The pruner that the configuration of an InternVL model asks for, or None where it asks for none.

    Raises:
        ValueError: a wrong entry, another model, or a method that cannot be used here.
    """
    entry = getattr(config, KEY, None)
    if entry is None:
        return None
    architectures = list(getattr(config, "architectures", None) or ())
    if architectures != ["InternVLChatModel"]:
        raise ValueError(f"sglang: the model is of architecture {', '.join(architectures) or None}, allowed with "
                         f"{KEY!r}: InternVLChatModel")
    if not isinstance(entry, dict) or not isinstance(entry.get("method"), str):
        raise ValueError(f"sglang: `json_model_override_args` has {entry!r} under {KEY!r}, allowed: "
                         "{'method': name, ..}")
    size, patch = _first(getattr(config, "force_image_size", None) or config.vision_config.image_size), _first(
        config.vision_config.patch_size)
    tokens = int((size // patch) ** 2 * config.downsample_ratio ** 2)  # as the engine counts them
    return Pruner(_method(entry), tokens, config.llm_config.hidden_size)


def _first(size: Any) -> int:
    return size[0] if isinstance(size, (list, tuple)) else size


def _method(entry: dict[str, Any]) -> methods.Method:
    name, config = entry["method"], {key: value for key, value in entry.items() if key != "method"}
    kind = methods.methods().get(name)
    usable = [n for n, k in methods.methods().items()
              if set(k.info.needs) <= set(SIGNALS) and k.info.family in ("selection", "merging")]
    if kind is None or name not in usable:
        why = "" if kind is None else f", which needs {', '.join(kind.info.needs)} or acts inside the language model"
        raise ValueError(f"sglang: `method` is {name!r}{why}, allowed: {', '.join(usable)}")
    allowed = [f.name for f in fields(kind) if f.init]  # type: ignore[arg-type]
    wrong = [key for key in config if key not in allowed]
    if wrong:
        raise ValueError(f"sglang: `method` is {name!r}, which has no {', '.join(wrong)}, allowed: "
                         f"{', '.join(allowed)}")
    keep = config.get("keep", 1.0)
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or keep <= 0 or (
            isinstance(keep, float) and keep > 1):
        raise ValueError(f"sglang: `keep` is {keep!r}, allowed: a share above 0.0 up to 1.0, or a number of "
                         "tokens from 1")
    if isinstance(config.get("prototypes"), str):
        config["prototypes"] = prototypes.load(config["prototypes"]).prototypes
    return methods.get(name, **{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})
