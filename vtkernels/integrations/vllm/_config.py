"""Which method prunes which modality, and how many tokens it keeps: known before the encoder runs."""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ... import methods, prototypes

KEY = "vtkernels"  # of the engine's `hf_overrides`; reaches the processor and the model with the model's configuration
MODALITIES = ("image", "video")
# By the architecture that a checkpoint names.
ARCHITECTURES = {
    "LlavaForConditionalGeneration": "VtkernelsLlavaForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration": "VtkernelsQwen2_5_VLForConditionalGeneration",
}
SIGNALS = ("hidden", "grid")
Grid = tuple[int, int, int]


class Pruner:
    """A method, for tokens of one width. Its counts are those of a run on tensors without data."""

    def __init__(self, method: methods.Method, width: int, needs_indices: bool) -> None:
        self.method, self.width, self.needs_indices = method, width, needs_indices
        self.count = lru_cache(maxsize=4096)(self._count)

    def _count(self, tokens: int, grid: Grid | None) -> int:
        """How many of so many tokens stay. Host only.

        Raises:
            ValueError: a method that gives no exact count, other rows than tokens, or none at all.
        """
        name = self.method.info.name
        hidden = torch.empty(1, tokens, self.width, device="meta")
        try:
            result = self.method(methods.Inputs(hidden=hidden, grid=grid))
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"vllm: `method` is {name!r}, which cannot run on {tokens} tokens of grid {grid} "
                             f"(frames, rows, columns): {error}") from error
        if result.counts is not None:
            raise ValueError(f"vllm: `method` is {name!r}, whose counts depend on the image, allowed: methods that "
                             "keep an exact number, which the engine must know before the encoder runs")
        if result.hidden is None or result.hidden.dim() != 3 or result.hidden.shape[2] != self.width:
            raise ValueError(f"vllm: `method` is {name!r}, which does not return tokens of the model's width "
                             f"{self.width}, allowed: methods that select or merge tokens")
        count = result.hidden.shape[1]
        if self.needs_indices and (result.indices is None or tuple(result.indices.shape) != (1, count)):
            raise ValueError(f"vllm: `method` is {name!r}, which does not say where its tokens stood, allowed: methods "
                             "whose results have `indices`, since the tokens of this model have positions in the grid")
        if not 1 <= count <= tokens:
            raise ValueError(f"vllm: `method` is {name!r}, which makes {count} of {tokens} tokens, allowed: 1 to "
                             f"{tokens}")
        return count

    def to(self, device: torch.device, dtype: torch.dtype) -> "Pruner":
        """The same with the method's tensors, such as prototypes, where the tokens will be."""
        held = {f.name: getattr(self.method, f.name) for f in fields(self.method) if f.init}  # type: ignore[arg-type]
        moved = {name: value.to(device, dtype) for name, value in held.items() if isinstance(value, Tensor)}
        return Pruner(replace(self.method, **moved), self.width, self.needs_indices)  # type: ignore[type-var]

    def __call__(self, features: Sequence[Tensor], grids: Sequence[Grid | None]) -> list[methods.Result]:
        """The result for each `[N, D]`. Images of one size run as one batch."""
        return methods.batch(self.method, [methods.Inputs(hidden=tokens[None], grid=grid)
                                           for tokens, grid in zip(features, grids, strict=True)])


def read(config: Any, modalities: Sequence[str] = MODALITIES, needs_indices: bool = False) -> dict[str, Pruner]:
    """The pruner of each modality that is pruned, from the configuration of a model.

    Raises:
        ValueError: a missing or wrong entry, or a method that cannot be used here.
    """
    entry = getattr(config, KEY, None)
    if not isinstance(entry, dict) or not entry:
        raise ValueError(f"vllm: `hf_overrides` has {entry!r} under {KEY!r}, allowed: {{'method': name, ..}}, or such "
                         f"an entry for each of {', '.join(MODALITIES)}")
    if "method" in entry:
        entries = dict.fromkeys(modalities, entry)
    else:
        wrong = [name for name in entry if name not in modalities]
        if wrong:
            raise ValueError(f"vllm: `hf_overrides` has {', '.join(wrong)} under {KEY!r}, allowed: 'method' and its "
                             f"configuration, or {' and '.join(modalities)} for this model")
        entries = entry
    width = config.get_text_config().hidden_size
    return {modality: Pruner(_method(found), width, needs_indices) for modality, found in entries.items()}


def _method(entry: Any) -> methods.Method:
    if not isinstance(entry, dict) or not isinstance(entry.get("method"), str):
        raise ValueError(f"vllm: an entry under {KEY!r} is {entry!r}, allowed: {{'method': name, ..}}")
    name, config = entry["method"], {k: v for k, v in entry.items() if k != "method"}
    kind = methods.methods().get(name)
    if kind is None:
        raise ValueError(f"vllm: `method` is {name!r}, allowed: {', '.join(usable())}")
    missing = [need for need in kind.info.needs if need not in SIGNALS]
    if missing or kind.info.family == "cache":
        why = f"needs {', '.join(missing)}" if missing else "acts on the cache of the language model"
        raise ValueError(f"vllm: `method` is {name!r}, which {why}; the engine has hidden and grid before the language "
                         f"model, allowed: {', '.join(usable())}")
    allowed = [f.name for f in fields(kind) if f.init]  # type: ignore[arg-type]
    wrong = [key for key in config if key not in allowed]
    if wrong:
        raise ValueError(f"vllm: `method` is {name!r}, which has no {', '.join(wrong)}, allowed: {', '.join(allowed)}")
    _check_share(config)
    if isinstance(config.get("prototypes"), str):
        config["prototypes"] = prototypes.load(config["prototypes"]).prototypes
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    return methods.get(name, **config)


def _check_share(config: dict[str, Any]) -> None:
    keep, rate = config.get("keep", 1.0), config.get("pruning_rate", 0.0)
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not keep > 0 or (
            isinstance(keep, float) and not keep <= 1):
        raise ValueError(f"vllm: `keep` is {keep!r}, allowed: a share above 0.0 up to 1.0, or a number of tokens "
                         "from 1")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise ValueError(f"vllm: `pruning_rate` is {rate!r}, allowed: 0.0 up to, but not, 1.0")


def usable() -> list[str]:
    """Methods before the language model that need no more than the tokens and their grid."""
    return [name for name, kind in methods.methods().items()
            if set(kind.info.needs) <= set(SIGNALS) and kind.info.family in ("selection", "merging")]
