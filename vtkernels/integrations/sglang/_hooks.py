"""What runs around functions of SGLang. A hook gets the original function and the arguments of the call."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ._config import KEY, read

PRUNER = "_vtkernels_pruner"  # attribute of the model and of the processor


def build_model(original: Callable, model: Any, config: Any, *args: Any, **kwargs: Any) -> None:
    pruner = read(config)  # what cannot work is refused before weights are loaded
    original(model, config, *args, **kwargs)
    setattr(model, PRUNER, pruner)


def extract_feature(original: Callable, model: Any, pixel_values: Tensor) -> Tensor:
    """Features `[tiles, N, D]` of images and of video frames, pruned to as many as there are placeholders."""
    features = original(model, pixel_values)
    pruner = getattr(model, PRUNER)
    return features if pruner is None else pruner(features)


def build_processor(original: Callable, processor: Any, hf_config: Any, *args: Any, **kwargs: Any) -> None:
    """Lowers the number of placeholders for a tile, from which the prompt is made and frames are budgeted."""
    pruner = read(hf_config)
    original(processor, hf_config, *args, **kwargs)
    setattr(processor, PRUNER, pruner)
    if pruner is not None:
        if processor.num_image_token != pruner.tokens:
            raise ValueError(f"sglang: the processor counts {processor.num_image_token} tokens for a tile, allowed: "
                             f"the {pruner.tokens} of the configuration")
        processor.num_image_token = pruner.count


def special_format(original: Callable, processor: Any, image_data: Any, video_data: Any, *args: Any,
                   **kwargs: Any) -> Any:
    """Pixels that were processed elsewhere come with a prompt whose placeholders were counted without pruning."""
    if getattr(processor, PRUNER) is not None:
        for data in (*(image_data or ()), *(video_data or ())):
            if isinstance(data, dict) and data.get("format") == "processor_output":
                raise ValueError(f"sglang: an item is in the format 'processor_output', allowed with {KEY!r}: images "
                                 "and videos themselves, or 'precomputed_embedding' that was pruned before")
    return original(processor, image_data, video_data, *args, **kwargs)


_MODEL = "sglang.srt.models.internvl.InternVLChatModel"
_PROCESSOR = "sglang.srt.multimodal.processors.internvl.InternVLProcessor"
HOOKS: dict[str, Callable] = {
    f"{_MODEL}.__init__": build_model,
    f"{_MODEL}.extract_feature": extract_feature,
    f"{_PROCESSOR}.__init__": build_processor,
    f"{_PROCESSOR}._process_special_format": special_format,
}
