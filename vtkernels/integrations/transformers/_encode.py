"""Pruned inputs for `forward` or `generate`, without a hook in the model."""

import inspect
from typing import Any

import torch
from torch import Tensor

from ... import methods
from ._families import backbone, family_of, grids, visual_ids
from ._handle import POSITIONS
from ._prompt import Prompt, pick
from ._select import Signals, check_signals, select

_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
_FEATURES = {"image": ("pixel_values", "image_sizes", "image_grid_thw", "vision_feature_layer",
                       "vision_feature_select_strategy", "batch_num_images"),
             "video": ("pixel_values_videos", "video_grid_thw", "vision_feature_layer",
                       "vision_feature_select_strategy")}


@torch.no_grad()
def prune_inputs(model: Any, inputs: dict[str, Any], method: str | methods.Method, *, positions: str = "preserve",
                 **config: Any) -> dict[str, Any]:
    """Encode the images once, prune their tokens, and give what `model.generate(**..)` or `model(**..)` takes.

    The placeholders of dropped tokens leave the prompt, and the kept features go in through `mm_encoder_outputs`, so
    that ids, mask, positions and caches all have the new length from the start.

    Args:
        model: of a family that `apply` knows.
        inputs: what the processor returned: `input_ids`, `attention_mask`, pixels, grids.
        method, positions, config: as for `apply`; methods before the language model that need no attention of the
            tower.

    Returns:
        `input_ids`, `attention_mask`, `position_ids`, `mm_encoder_outputs`, and what else the inputs held.

    Raises:
        ValueError: as `apply`; features and placeholders that do not match.
        RuntimeError: a transformers without the keyword (5.16 has none, 5.23 has it).

    Source of the seam: the keyword `mm_encoder_outputs` of transformers 5.
    """
    if isinstance(method, str):
        method = methods.get(method, **config)
    if positions not in POSITIONS:
        raise ValueError(f"prune_inputs: `positions` is {positions!r}, allowed: {' or '.join(map(repr, POSITIONS))}")
    family = family_of(model)
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        raise RuntimeError("prune_inputs: this transformers has no `mm_encoder_outputs`, allowed: a newer one (5.23 "
                           "has it), or `apply`, which does without")
    if method.stages or method.info.family == "cache":
        raise ValueError(f"prune_inputs: `method` is {method.info.name!r}, which acts inside the language model, "
                         "allowed: methods of the encoder or projector; `apply` takes both")
    check_signals(method, {"hidden": "", "grid": "", "text": "", "vision": "take `apply`, which sees the tower",
                           "decoder": "only between decoder layers"})
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    prompt = Prompt.read(ids, mask, visual_ids(model), grids(model, inputs), 0)
    module = backbone(model)
    embeds = model.get_input_embeddings()(ids)
    encoded = {kind: getattr(module, f"get_{kind}_features")(
        **{k: inputs[k] for k in _FEATURES[kind] if inputs.get(k) is not None}, return_dict=True)
        for kind, pixels in _PIXELS.items() if inputs.get(pixels) is not None}
    tokens = {kind: getattr(model.config, f"{kind}_token_id") for kind in encoded}
    for kind, output in encoded.items():
        features = _flat(output.pooler_output).to(embeds)
        found = ids == tokens[kind]
        if int(found.sum()) != features.shape[0]:
            raise ValueError(f"prune_inputs: `input_ids` has {int(found.sum())} placeholders for {kind}s, allowed: "
                             f"{features.shape[0]} (their features)")
        embeds = embeds.masked_scatter(found[..., None], features)
    _, index, states = prompt.keep(embeds, select(method, 0, embeds, prompt, Signals()))
    kept_ids, present = pick(ids, index, -1), index >= 0
    kept_ids = kept_ids.masked_fill(~present, getattr(model.config.get_text_config(), "pad_token_id", None) or 0)
    out = {k: v for k, v in inputs.items() if k not in {*_FEATURES["image"], *_FEATURES["video"], "second_per_grid_ts"}}
    out |= {"input_ids": kept_ids, "attention_mask": present.long(), "mm_encoder_outputs": encoded}
    if positions == "preserve":
        out["position_ids"] = pick(_positions(module, inputs, prompt, family.mrope), index, -1)
    if "mm_token_type_ids" in inputs:
        out["mm_token_type_ids"] = pick(inputs["mm_token_type_ids"], index, -1)
    for kind, output in encoded.items():
        here = pick((ids == tokens[kind]).long(), index, -1).bool()
        output.pooler_output = _like(output.pooler_output, states[here])
        if getattr(output, "deepstack_features", None) is not None:
            number = ((ids == tokens[kind]).flatten().cumsum(0) - 1).view(ids.shape)
            rows = pick(number, index, -1)[here]
            output.deepstack_features = [_like(layer, _flat(layer)[rows]) for layer in output.deepstack_features]
    return out


def _flat(features: Any) -> Tensor:
    if isinstance(features, Tensor):
        return features.flatten(0, -2)
    return torch.cat([f.flatten(0, -2) for f in features])


def _like(features: Any, kept: Tensor) -> Any:
    """One batch of images, or a list of them, as the family has it."""
    return kept[None] if isinstance(features, Tensor) else [kept]


def _positions(module: Any, inputs: dict[str, Any], prompt: Prompt, mrope: bool) -> Tensor:
    """Of the whole prompt: `[B, S]`, or with M-RoPE `[4, B, S]`, the text positions first."""
    ids = inputs["input_ids"]
    pads = torch.tensor(prompt.pads, device=ids.device)[:, None]
    text = (torch.arange(ids.shape[1], device=ids.device) - pads).clamp(min=0)
    if not mrope:
        return text
    names = ("image_grid_thw", "video_grid_thw", "attention_mask", "second_per_grid_ts", "mm_token_type_ids")
    axes, module.rope_deltas = module.get_rope_index(ids, **{k: inputs[k] for k in names if inputs.get(k) is not None})
    return torch.cat([text[None], axes])
