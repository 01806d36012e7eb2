"""LLaVA with pruned images. Kept tokens are numbered without gaps, as vLLM numbers every prompt of this model."""

from math import isqrt
from typing import Any

from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.model_executor.models.vision import get_num_selected_vision_tokens, get_vision_encoder_info
from vllm.multimodal import MULTIMODAL_REGISTRY

from ._config import Grid, Pruner, read
from ._processor import PrunedPrompts


def _read(config: Any) -> dict[str, Pruner]:
    if config.vision_config.model_type == "pixtral":
        raise ValueError("vllm: `vision_config` is of type 'pixtral', allowed for a pruned LLaVA: CLIP and SigLIP")
    pruners = read(config, ("image",))
    size, strategy = config.vision_config.image_size, config.vision_feature_select_strategy
    patches = get_vision_encoder_info(config).get_num_image_tokens(image_width=size, image_height=size)
    tokens = get_num_selected_vision_tokens(patches, strategy)
    for pruner in pruners.values():  # every image has as many tokens, so what cannot work is known now
        pruner.count(tokens, _square(tokens))
    return pruners


def _square(tokens: int) -> Grid | None:
    side = isqrt(tokens)
    return (1, side, side) if side * side == tokens else None


class PrunedLlavaProcessor(PrunedPrompts, LlavaMultiModalProcessor):
    def __init__(self, info: LlavaProcessingInfo, *args: Any, **kwargs: Any) -> None:
        self.pruners = _read(info.get_hf_config())
        super().__init__(info, *args, **kwargs)

    def grid(self, modality: str, items: Any, index: int, tokens: int) -> Grid | None:
        return _square(tokens)


@MULTIMODAL_REGISTRY.register_processor(PrunedLlavaProcessor, info=LlavaProcessingInfo,
                                        dummy_inputs=LlavaDummyInputsBuilder)
class VtkernelsLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    supports_tower_connector_lora = False  # its token counts are those after pruning

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        pruner = _read(config)["image"]
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        weight = next(self.multi_modal_projector.parameters())
        self.pruner = pruner.to(weight.device, weight.dtype)

    def embed_multimodal(self, **kwargs: object) -> list[Tensor]:
        features = list(super().embed_multimodal(**kwargs))  # [N, D] of each image
        results = self.pruner(features, [_square(len(tokens)) for tokens in features])
        return [tokens for result in results for tokens in result.rows()]
