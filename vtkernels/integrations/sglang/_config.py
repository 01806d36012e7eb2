"""Which method prunes the tiles of a model, and how many tokens of each tile it keeps."""

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ... import methods
from .._engine import exact_count, method_of, moved

KEY = "vtkernels"  # of the engine's `--json-model-override-args`; reaches the processor and the model


class Pruner:
    """A method for tiles of `tokens` tokens of one width. `count` of them stay, whatever the image shows.

    Raises:
        ValueError: a method that gives no exact count, other rows than tokens, or none at all.
    """

    def __init__(self, method: methods.Method, tokens: int, width: int) -> None:
        side = isqrt(tokens)
        self.method, self.tokens = method, tokens
        self.grid = (1, side, side) if side * side == tokens else None
        self.count = exact_count("sglang", method, tokens, width, self.grid)
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
            self._moved[place] = moved(self.method, *place)
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
    size, patch = _first(getattr(config, "force_image_size", None) or config.vision_config.image_size), _first(
        config.vision_config.patch_size)
    tokens = int((size // patch) ** 2 * config.downsample_ratio ** 2)  # as the engine counts them
    return Pruner(method_of("sglang", "json_model_override_args", KEY, entry), tokens, config.llm_config.hidden_size)


def _first(size: Any) -> int:
    return size[0] if isinstance(size, (list, tuple)) else size
