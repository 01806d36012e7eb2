"""A tiny random model of each family that the transformers integration knows, and prompts for it."""

from functools import cache
from typing import Any

import torch
import transformers as hf

IMAGE, VIDEO, VISION_START, VISION_END, VOCABULARY = 120, 121, 122, 123, 128
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
         "image_size": 56, "patch_size": 14}  # 16 patches
FAMILIES = ("llava", "llava_next", "llava_onevision", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def _config(family: str) -> Any:
    ids: dict[str, Any] = {"image_token_id": IMAGE}
    towers = {"llava_onevision": hf.SiglipVisionConfig, "internvl": hf.InternVLVisionConfig}
    if not family.startswith("qwen"):
        square = {"image_size": [56, 56], "patch_size": [14, 14]} if family == "internvl" else {}
        parts = {"vision_config": towers.get(family, hf.CLIPVisionConfig)(**TOWER | square),
                 "text_config": (hf.LlamaConfig if family in ("llava", "llava_next") else hf.Qwen2Config)(**TEXT)}
        if family in ("llava", "llava_next"):
            ids["image_token_index"] = IMAGE
        if family in ("llava_next", "llava_onevision"):
            ids["image_grid_pinpoints"] = [[56, 112], [112, 56]]
        if family == "llava_onevision":
            ids |= {"image_token_index": IMAGE, "video_token_index": VIDEO, "vision_aspect_ratio": "anyres_max_9"}
        kinds = {"llava": hf.LlavaConfig, "llava_next": hf.LlavaNextConfig, "llava_onevision": hf.LlavaOnevisionConfig,
                 "internvl": hf.InternVLConfig}
        return kinds[family](**parts, **ids)
    vision = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    marks = {**ids, "video_token_id": VIDEO, "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
    text = {**TEXT, "rope_parameters": MROPE}
    if family == "qwen2_vl":
        return hf.Qwen2VLConfig(text_config=text, vision_config={**vision, "embed_dim": 32, "hidden_size": 64}, **marks)
    if family == "qwen2_5_vl":
        own = {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "window_size": 56,
               "fullatt_block_indexes": [1]}
        return hf.Qwen2_5_VLConfig(text_config=text, vision_config={**vision, **own}, **marks)
    own = {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "num_position_embeddings": 64,
           "deepstack_visual_indexes": [0]}
    return hf.Qwen3VLConfig(text_config={**text, "head_dim": 16}, vision_config={**vision, **own}, **marks)


@cache
def model(family: str) -> Any:
    torch.manual_seed(0)
    made = hf.AutoModelForImageTextToText.from_config(_config(family)).eval()
    for parameter in made.parameters():  # so that tokens differ and every layer matters
        torch.nn.init.normal_(parameter, std=0.15 if parameter.dim() > 1 else 0.5)
    made.generation_config.pad_token_id, made.generation_config.eos_token_id = 0, None
    return made


def _image(family: str, seed: int, big: bool) -> tuple[dict[str, Any], int]:
    """Pixels of an image and its number of placeholders."""
    g = torch.Generator().manual_seed(seed)
    if family == "llava":
        return {"pixel_values": torch.randn(1, 3, 56, 56, generator=g)}, 16
    if family == "internvl":
        return {"pixel_values": torch.randn(1, 3, 56, 56, generator=g)}, 4
    if family in ("llava_next", "llava_onevision"):
        tiles = torch.randn(1, 3, 3, 56, 56, generator=g)
        size = torch.tensor([[56, 112]])
        # base, then 4 x 8 patches and a newline after each of the 4 rows
        return {"pixel_values": tiles, "image_sizes": size}, 16 + 4 * (8 + 1)
    h, w = (4, 8) if big else (4, 4)
    pixels = torch.randn(h * w, 3 * 2 * 14 * 14, generator=g)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, h, w]])}, h * w // 4


def prompt(family: str, images: int = 1, batch: int = 1, seed: int = 0, unequal: bool = False) -> dict[str, Any]:
    """Text, images between text, text. `unequal`: rows of different length, padded on the left."""
    g = torch.Generator().manual_seed(seed + 100)
    rows, pixels = [], []
    for b in range(batch):
        row = torch.randint(3, 100, (4 + (3 * b if unequal else 0),), generator=g).tolist()
        for i in range(images):
            found, count = _image(family, seed + 10 * b + i, big=unequal and b == 1)
            pixels.append(found)
            marks = ([VISION_START], [VISION_END]) if family.startswith("qwen") else ([], [])
            row += [*marks[0], *[IMAGE] * count, *marks[1], *torch.randint(3, 100, (3,), generator=g).tolist()]
        rows.append(row + torch.randint(3, 100, (5,), generator=g).tolist())
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    out: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    out |= {name: torch.cat([p[name] for p in pixels]) for name in pixels[0]}
    if family.startswith("qwen"):
        out["mm_token_type_ids"] = (ids == IMAGE).long()
    return out


def video(family: str, seed: int = 0) -> dict[str, Any]:
    """Text, a video of two (merged) frames, text."""
    g = torch.Generator().manual_seed(seed)
    if family == "llava_onevision":
        pixels, count = {"pixel_values_videos": torch.randn(1, 2, 3, 56, 56, generator=g)}, 2 * 4 + 1  # pooled; newline
        marks = [VIDEO] * count
    else:
        grid = torch.tensor([[2, 4, 4]])
        pixels = {"pixel_values_videos": torch.randn(32, 3 * 2 * 14 * 14, generator=g), "video_grid_thw": grid}
        frame = [VISION_START, *[VIDEO] * 4, VISION_END]
        marks = 2 * frame if family == "qwen3_vl" else [VISION_START, *[VIDEO] * 8, VISION_END]
    before, after = (torch.randint(3, 100, (n,), generator=g).tolist() for n in (4, 6))
    ids = torch.tensor([before + marks + after])
    out = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    if family.startswith("qwen"):
        out["mm_token_type_ids"] = (ids == VIDEO).long() * 2
    return out
