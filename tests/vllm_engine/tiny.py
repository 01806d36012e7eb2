"""Tiny random models with processors, saved where both engines load them from, and prompts for them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

MARKS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>",
         "<|vision_end|>"]
PAD, BOS, EOS, _, IMAGE, IMAGE_PAD, VIDEO_PAD, VISION_START, VISION_END = range(len(MARKS))
FAMILIES = ("llava", "qwen2_5_vl")
VOCABULARY = 128
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": PAD,
        "bos_token_id": BOS, "eos_token_id": EOS}


def _tokenizer() -> Any:
    words = MARKS + [f"w{i}" for i in range(VOCABULARY - len(MARKS))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
                                      unk_token="<unk>", additional_special_tokens=MARKS[4:])


def _llava() -> tuple[Any, Any]:
    vision = hf.CLIPVisionConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2,
                                 image_size=56, patch_size=14)
    config = hf.LlavaConfig(vision_config=vision, text_config=hf.LlamaConfig(**TEXT), image_token_index=IMAGE)
    images = hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = hf.LlavaProcessor(image_processor=images, tokenizer=_tokenizer(), patch_size=14,
                                  vision_feature_select_strategy="default", image_token="<image>",
                                  num_additional_image_tokens=1)
    return hf.LlavaForConditionalGeneration(config), processor


def _qwen2_5_vl() -> tuple[Any, Any]:
    vision = {"depth": 2, "num_heads": 2, "hidden_size": 64, "out_hidden_size": 128, "intermediate_size": 96,
              "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56,
              "fullatt_block_indexes": [1], "tokens_per_second": 2}
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    config = hf.Qwen2_5_VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=vision,
                                 image_token_id=IMAGE_PAD, video_token_id=VIDEO_PAD,
                                 vision_start_token_id=VISION_START, vision_end_token_id=VISION_END)
    sizes = {"min_pixels": 56 * 56, "max_pixels": 168 * 168}
    processor = hf.Qwen2_5_VLProcessor(image_processor=hf.Qwen2VLImageProcessor(**sizes), tokenizer=_tokenizer(),
                                       video_processor=hf.Qwen2VLVideoProcessor(**sizes))
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def save(family: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model, processor = {"llava": _llava, "qwen2_5_vl": _qwen2_5_vl}[family]()
    for parameter in model.parameters():  # so that outputs differ and every layer matters
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    # vLLM reads the names of the published checkpoints, which have one level more than those of transformers 5.
    weights = {name.replace("vision_tower.", "vision_tower.vision_model.") if family == "llava" else name: tensor
               for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    processor.save_pretrained(folder)
    return folder


def picture(seed: int, size: tuple[int, int] = (56, 56)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def words(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(len(MARKS), VOCABULARY, count).tolist()


def text(family: str, seed: int, pieces: tuple[int, ...], mark: str = "image") -> str:
    """Runs of so many words, with the placeholder of an image (or video) between two runs."""
    media = {"llava": "<image>", "qwen2_5_vl": f"<|vision_start|> <|{mark}_pad|> <|vision_end|>"}[family]
    runs = [" ".join(f"w{i - len(MARKS)}" for i in words(seed + at, count)) for at, count in enumerate(pieces)]
    return f" {media} ".join(runs)


def clip(seed: int, frames: int = 4, size: tuple[int, int] = (112, 56)) -> tuple[np.ndarray, dict[str, Any]]:
    """A video at 2 frames per second, and what a decoder says of it."""
    pixels = np.stack([np.asarray(picture(seed + i // 2, size)) for i in range(frames)])
    return pixels, {"fps": 2.0, "duration": frames / 2, "total_num_frames": frames, "do_sample_frames": False,
                    "frames_indices": list(range(frames)), "video_backend": "opencv"}
