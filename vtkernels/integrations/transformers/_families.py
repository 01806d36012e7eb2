"""The model families whose prompts and towers are known, and what is refused."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Family:
    """What differs between families.

    video_ids: whether videos have a placeholder of their own.
    mrope: whether tokens have three position ids, from grids in patches that the merger divides by `merge`.
    tower: whether the visual tokens are the patches of the vision tower, one by one and in order.
    """

    video_ids: bool = False
    mrope: bool = False
    tower: bool = False


FAMILIES = {
    "llava": Family(tower=True),
    "llava_next": Family(),
    "llava_onevision": Family(video_ids=True),
    "internvl": Family(),
    "qwen2_vl": Family(video_ids=True, mrope=True),
    "qwen2_5_vl": Family(video_ids=True, mrope=True),
    "qwen3_vl": Family(video_ids=True, mrope=True),
}


def family_of(model: Any) -> Family:
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in FAMILIES:
        raise ValueError(f"apply: `model` is of type {kind!r}, allowed: {', '.join(FAMILIES)}. For another family, "
                         "prune its embeddings with a method of vtkernels.methods and pass `inputs_embeds`")
    return FAMILIES[kind]


def backbone(model: Any) -> Any:
    """The module that embeds the images and calls the language model."""
    return model.model if hasattr(model, "lm_head") else model


def visual_ids(model: Any) -> tuple[int, ...]:
    config = model.config
    ids = [config.image_token_id]
    if family_of(model).video_ids:
        ids.append(config.video_token_id)
    return tuple(ids)


def refuse_mixed_layers(model: Any, what: str) -> None:
    """Sliding windows and linear attention keep other states than one key and value per token."""
    kinds = set(getattr(backbone(model).language_model.config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise ValueError(f"apply: {what} of a model with layers of {', '.join(sorted(kinds))}, allowed: models whose "
                         "layers all have full attention")


def grids(model: Any, kwargs: dict[str, Any]) -> dict[int, list[tuple[int, int, int]]]:
    """(frames, rows, columns) in tokens of each image and each video, by placeholder id. One transfer to the host."""
    out: dict[int, list[tuple[int, int, int]]] = {}
    if not family_of(model).mrope:
        return out
    merge = model.config.vision_config.spatial_merge_size
    for name, token in (("image_grid_thw", "image_token_id"), ("video_grid_thw", "video_token_id")):
        grid = kwargs.get(name)
        if isinstance(grid, torch.Tensor):
            out[getattr(model.config, token)] = [(t, h // merge, w // merge) for t, h, w in grid.tolist()]
    return out
