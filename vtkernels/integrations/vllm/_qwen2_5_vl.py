"""Qwen2.5-VL with pruned images and videos. Kept tokens keep the M-RoPE positions of the unpruned grid.

Which tokens stay is known on the device alone, and vLLM computes positions on the host. So the host gives every token
of an item the item's first position, and the rest travels with the features as further channels, is cut with them in a
chunked prefill and cached with them, and is added to the positions right before the language model.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ._config import Grid, Pruner, read
from ._mrope import join_offsets, offsets, positions, split_offsets
from ._processor import PrunedPrompts


def _read(config: Any) -> dict[str, Pruner]:
    pruners = read(config, needs_indices=True)
    for modality, pruner in pruners.items():  # a method that never works is refused now, not at the first request
        frames = 8 if modality == "video" else 1
        pruner.count(frames * 16 * 16, (frames, 16, 16))
    return pruners


def _refuse(vllm_config: VllmConfig) -> None:
    """What would pass the model's positions by."""
    parallel, multimodal = vllm_config.parallel_config, vllm_config.model_config.multimodal_config
    engine = {"pipeline_parallel_size": parallel.pipeline_parallel_size > 1,
              "enable_dbo": parallel.enable_dbo,
              "prefill_context_parallel_size": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
              "speculative_config": vllm_config.speculative_config is not None,
              "video_pruning_rate": bool(multimodal.video_pruning_rate)}
    for name, used in engine.items():
        if used:
            raise ValueError(f"vllm: `{name}` is set, allowed with a pruned Qwen2.5-VL: the engine's default")


class PrunedQwenInfo(Qwen2_5_VLProcessingInfo):
    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Any) -> dict[str, int]:
        """After pruning, so that memory is profiled with as many items as the scheduler may put into one step."""
        config, pruners = self.get_hf_config(), _read(self.get_hf_config())
        vision, size = config.vision_config, self.get_image_size_with_most_features()
        unit = vision.patch_size * vision.spatial_merge_size
        frames = self.get_num_frames_with_most_features(seq_len, mm_counts)
        most = {}
        for modality, count in (("image", 1), ("video", -(-frames // vision.temporal_patch_size))):
            grid = (count, size.height // unit, size.width // unit)
            pruner = pruners.get(modality)
            most[modality] = pruner.count(prod(grid), grid) if pruner else prod(grid)
        return most


class PrunedQwenProcessor(PrunedPrompts, Qwen2_5_VLMultiModalProcessor):
    def __init__(self, info: PrunedQwenInfo, *args: Any, **kwargs: Any) -> None:
        self.pruners = _read(info.get_hf_config())
        super().__init__(info, *args, **kwargs)

    def grid(self, modality: str, items: Any, index: int, tokens: int) -> Grid:
        frames, rows, columns = items[modality][index][f"{modality}_grid_thw"].data.tolist()
        merge = self.info.get_hf_config().vision_config.spatial_merge_size
        return frames, rows // merge, columns // merge


@MULTIMODAL_REGISTRY.register_processor(PrunedQwenProcessor, info=PrunedQwenInfo,
                                        dummy_inputs=Qwen2_5_VLDummyInputsBuilder)
class VtkernelsQwen2_5_VLForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    supports_tower_connector_lora = False  # its token counts are those after pruning

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        pruners = _read(vllm_config.model_config.hf_config)
        _refuse(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        weight = next(self.visual.parameters())
        self.pruners = {name: pruner.to(weight.device, weight.dtype) for name, pruner in pruners.items()}
        # Fixed addresses, as CUDA graphs need them. One more column than tokens: like the engine's own buffer.
        shape = 3, vllm_config.scheduler_config.max_num_batched_tokens + 1
        for name in ("_offsets", "_positions"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int64, device=weight.device), persistent=False)

    def get_encoder_cudagraph_config(self) -> Any:
        config = super().get_encoder_cudagraph_config()
        config.modalities = []  # a captured encoder would return unpruned tokens
        return config

    def _process_image_input(self, image_input: Any) -> tuple[Tensor, ...]:
        features = super()._process_image_input(image_input)
        return self._pruned("image", features, image_input["image_grid_thw"], [1.0] * len(features))

    def _process_video_input(self, video_input: Any) -> tuple[Tensor, ...]:
        features = super()._process_video_input(video_input)
        seconds = video_input.get("second_per_grid_ts")
        per_second = getattr(self.config.vision_config, "tokens_per_second", 1.0)
        seconds = [1.0] * len(features) if seconds is None else seconds.flatten().tolist()
        return self._pruned("video", features, video_input["video_grid_thw"], [per_second * s for s in seconds])

    def _pruned(self, modality: str, features: Sequence[Tensor], grid_thw: Tensor,
                steps: list[float]) -> tuple[Tensor, ...]:
        """Features of the kept tokens and their offsets. The grids lie on the host, in patches."""
        merge = self.config.vision_config.spatial_merge_size
        grids = [(frames, rows // merge, columns // merge) for frames, rows, columns in grid_thw.tolist()]
        if modality not in self.pruners:
            kept = [(tokens, torch.arange(len(tokens), device=tokens.device)) for tokens in features]
        else:
            results = self.pruners[modality](features, grids)
            kept = [(result.rows()[0], result.indices[0]) for result in results if result.indices is not None]
        return tuple(join_offsets(tokens, offsets(indices, grid, step))
                     for (tokens, indices), grid, step in zip(kept, grids, steps, strict=True))

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        lengths = [f.mm_position.length for f in sorted(mm_features, key=lambda f: f.mm_position.offset)]
        items = [(start, length, (frames, rows, columns), step) for (start, frames, rows, columns, step), length
                 in zip(self.iter_mm_grid_thw(mm_features), lengths, strict=True)]
        return positions(len(input_tokens), items)

    def embed_input_ids(self, input_ids: Tensor, multimodal_embeddings: Any = None, *,
                        is_multimodal: Tensor | None = None) -> Tensor:
        self._offsets.zero_()
        if multimodal_embeddings is None or len(multimodal_embeddings) == 0:
            return super().embed_input_ids(input_ids, None, is_multimodal=is_multimodal)
        width = self.config.get_text_config().hidden_size
        tokens, away = split_offsets(multimodal_embeddings, width)
        # The mask lies on the host, where vLLM makes it, so nothing waits for the device.
        self._offsets[:, :len(input_ids)][:, is_multimodal] = away.T.to(torch.int64)
        return super().embed_input_ids(input_ids, tokens, is_multimodal=is_multimodal)

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        count = positions.shape[-1]
        moved = self._positions[:, :count]
        torch.add(positions, self._offsets[:, :count], out=moved)
        return super().forward(input_ids, moved, *args, **kwargs)
