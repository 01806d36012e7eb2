"""Engines of vLLM, and the same prompts in transformers, pruned through `mm_encoder_outputs`."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

from vtkernels.integrations.transformers import prune_inputs

NEW = 8
POSITIONS = {"llava": "pack", "qwen2_5_vl": "preserve"}
LIMITS = {"llava": {"image": 2}, "qwen2_5_vl": {"image": 2, "video": 1}}
Prompt = dict[str, Any]  # text, and "image": pictures or "video": (frames, metadata)


def start(folder: Path, family: str, **options: Any) -> LLM:
    return LLM(str(folder), **{"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "block_size": 32,
                               "max_num_batched_tokens": 256, "max_num_seqs": 4, "enable_prefix_caching": True,
                               "limit_mm_per_prompt": LIMITS[family], "disable_log_stats": True, **options})


class Engines:
    """One engine at a time: the last one stays until another is asked for."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders, self.key, self.llm = folders, None, None

    def __call__(self, family: str, **options: Any) -> LLM:
        key = (family, repr(sorted(options.items())))
        if key != self.key:
            self.close()
            self.llm, self.key = start(self.folders[family], family, **options), key
        return self.llm

    def close(self) -> None:
        if self.llm is not None:
            self.llm, self.key = None, None
            gc.collect()
            cleanup_dist_env_and_memory()


def generate(llm: LLM, prompts: Sequence[Prompt]) -> list[Any]:
    """All at once: the requests run side by side on one paged cache."""
    requests = [{"prompt": prompt["text"], "multi_modal_data": {k: v for k, v in prompt.items() if k != "text"}}
                for prompt in prompts]
    return llm.generate(requests, SamplingParams(max_tokens=NEW, temperature=0.0, ignore_eos=True), use_tqdm=False)


def tokens(outputs: Sequence[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


@torch.no_grad()
def transformers_tokens(folder: Path, family: str, prompts: Sequence[Prompt], method: Any = None) -> list[list[int]]:
    """Greedy tokens of each prompt by itself; `method`: of `vtkernels.methods`, None for the plain model."""
    model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    processor = hf.AutoProcessor.from_pretrained(folder)
    made = []
    for prompt in prompts:
        media: dict[str, Any] = {"images": prompt["image"]} if "image" in prompt else {}
        if "video" in prompt:
            frames, metadata = prompt["video"]
            known = {k: v for k, v in metadata.items() if k != "do_sample_frames"}  # that one is vLLM's own
            media = {"videos": [frames], "video_metadata": [known], "do_sample_frames": False}
        inputs = dict(processor(text=[prompt["text"]], return_tensors="pt", **media))
        if method is not None:
            inputs = prune_inputs(model, inputs, method, positions=POSITIONS[family])
        out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        made.append(out[0, inputs["input_ids"].shape[1]:].tolist())
    return made
