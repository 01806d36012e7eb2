"""Processors for the tiny models: words `w3` .. `w99`, real image processors."""

from typing import Any

import tiny_models
import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

TEMPLATE = ("{% for m in messages %}w5 {% for c in m.content %}{% if c.type == 'image' %}IMAGE {% else %}"
            "{{ c.text }} {% endif %}{% endfor %}{% endfor %}w9")


def tokenizer(image: str, template: str | None = TEMPLATE) -> Any:
    words = {"<pad>": 0, "<unk>": 1, "<image>": tiny_models.IMAGE, "<start>": tiny_models.VISION_START,
             "<end>": tiny_models.VISION_END, **{f"w{i}": i for i in range(3, 100)}}
    model = Tokenizer(WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    made = hf.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", pad_token="<pad>",
                                      additional_special_tokens=["<image>"])
    made.chat_template = template.replace("IMAGE", image) if template else None
    return made


def llava(template: str | None = TEMPLATE) -> Any:
    words = tokenizer("<image>", template)
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    return hf.LlavaProcessor(image_processor=images, tokenizer=words, patch_size=14, num_additional_image_tokens=1,
                             vision_feature_select_strategy="default", chat_template=words.chat_template)


class Qwen:
    """What transformers' own class does with text and images; that class cannot be imported without torchvision."""

    def __init__(self) -> None:
        self.tokenizer = tokenizer("<start> <image> <end>")
        self.image_processor = hf.Qwen2VLImageProcessorPil(
            patch_size=14, merge_size=2, temporal_patch_size=2,
            size={"shortest_edge": 56 * 56, "longest_edge": 168 * 112})

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> str:
        return self.tokenizer.apply_chat_template(messages, **kwargs)

    def __call__(self, text: str, images: Any, return_tensors: str) -> dict[str, Any]:
        pixels = self.image_processor(images=images, return_tensors=return_tensors)
        count = int(pixels["image_grid_thw"][0].prod()) // 4
        ids = self.tokenizer(text.replace("<image>", " ".join(["<image>"] * count)), return_tensors=return_tensors)
        return {**pixels, "input_ids": ids["input_ids"]}


def processor(family: str) -> Any:
    return llava() if family == "llava" else Qwen()


def with_nan(family: str, width: int) -> Any:
    """A processor that gives NaN for images of this width."""
    class Wrapped:
        def __init__(self) -> None:
            self.inner = processor(family)
            self.tokenizer, self.image_processor = self.inner.tokenizer, self.inner.image_processor
            self.apply_chat_template = self.inner.apply_chat_template

        def __call__(self, text: str, images: Any, **kwargs: Any) -> dict[str, Any]:
            out = dict(self.inner(text=text, images=images, **kwargs))
            if images[0].width == width:
                out["pixel_values"] = torch.full_like(out["pixel_values"], torch.nan)
            return out

    return Wrapped()
