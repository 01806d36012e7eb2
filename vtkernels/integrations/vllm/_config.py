"""Which method prunes which modality, and how many tokens it keeps: known before the encoder runs."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ... import methods
from .._engine import exact_count, method_of, moved

KEY = "vtkernels"  # of the engine's `hf_overrides`; reaches the processor and the model with the model's configuration
MODALITIES = ("image", "video")
# By the architecture that a checkpoint names.
ARCHITECTURES = {
    "LlavaForConditionalGeneration": "VtkernelsLlavaForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration": "VtkernelsQwen2_5_VLForConditionalGeneration",
}
Grid = tuple[int, int, int]


class Pruner:
    """A method, for tokens of one width. Its counts are those of a run on tensors without data."""

    def __init__(self, method: methods.Method, width: int, needs_indices: bool) -> None:
        self.method, self.width, self.needs_indices = method, width, needs_indices
        self.count = lru_cache(maxsize=4096)(self._count)

    def _count(self, tokens: int, grid: Grid | None) -> int:
        return exact_count("vllm", self.method, tokens, self.width, grid, self.needs_indices)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Pruner":
        """The same with the method's tensors, such as prototypes, where the tokens will be."""
        return Pruner(moved(self.method, device, dtype), self.width, self.needs_indices)

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
    return {modality: Pruner(method_of("vllm", "hf_overrides", KEY, found), width, needs_indices)
            for modality, found in entries.items()}
