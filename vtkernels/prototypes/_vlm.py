"""A vision-language model as the builder sees it: an image's tokens, and the first logits that some of them lead to."""

import hashlib
import io as bytes_io
import os
import warnings
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..demo import DemoError, need
from ..integrations.transformers._families import FAMILIES, backbone
from .io import CodebookError

QUESTION = "What does this image show? You must provide a single word that best describes the image."
_PIXELS = ("pixel_values", "image_sizes", "image_grid_thw")
_WHOLE = (0.0, 0.0, 1.0, 1.0)


class UnusableImage(Exception):
    """An image that is skipped, counted and listed."""


@dataclass(frozen=True)
class Seen:
    """An image as the model sees it: `features` `[N, D]` in raster order of `grid`, and the prompt around them.

    deep: what some models add to the visual tokens inside the language model, `[N, D]` each.
    box: the part of the image under the grid, as shares of its width and height: left, top, right, bottom.
    """

    features: Tensor
    grid: tuple[int, int]
    prefix: Tensor
    suffix: Tensor
    deep: tuple[Tensor, ...] = ()
    box: tuple[float, float, float, float] = _WHOLE
    digest: bytes = b""


def check_family(config: Any, what: Any) -> None:
    kind = getattr(config, "model_type", type(config).__name__)
    if kind not in FAMILIES:
        raise CodebookError(f"build-prototypes: `model` is {what} of type {kind!r}, allowed: a model with a vision "
                            f"tower, of one of the types {', '.join(FAMILIES)}")


def read_image(path: str | os.PathLike) -> tuple[Any, bytes]:
    """A Pillow image in RGB, and the sha256 of the file."""
    from ..demo.images import MAX_PIXELS, _own_size_limit, to_rgb

    pil, ops = need("PIL.Image", "Pillow"), need("PIL.ImageOps", "Pillow")
    try:
        contents = Path(path).read_bytes()
        with _own_size_limit(pil), warnings.catch_warnings(), pil.open(bytes_io.BytesIO(contents)) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > MAX_PIXELS:
                raise UnusableImage(f"{image.width} x {image.height} pixels, allowed: at most {MAX_PIXELS} in all")
            return to_rgb(ops.exif_transpose(image)), hashlib.sha256(contents).digest()
    except (DemoError, UnusableImage):
        raise
    except pil.UnidentifiedImageError as error:
        raise UnusableImage("not an image that Pillow knows") from error
    except Exception as error:  # Pillow's parsers raise whatever a broken file makes them meet
        raise UnusableImage(f"{type(error).__name__}: {error}") from error


class Vlm:
    """A model of a supported family with its processor. Everything runs where the model is, in its dtype."""

    def __init__(self, model: Any, processor: Any, *, question: str = QUESTION, prompt: str | None = None,
                 answer_start: str = "") -> None:
        check_family(getattr(model, "config", None), type(model).__name__)
        self.model, self.processor, self.config = model, processor, model.config
        self.device, self.dim = model.device, model.config.get_text_config().hidden_size
        self.family, self.backbone = FAMILIES[model.config.model_type], backbone(model)
        self.text = (prompt if prompt is not None else self._rendered(question)) + answer_start
        marks = processor.tokenizer(self.text)["input_ids"].count(self.config.image_token_id)
        if marks != 1:
            raise CodebookError(f"build-prototypes: `prompt` is {self.text!r} with {marks} placeholders for an image, "
                                "allowed: one")
        pad = getattr(processor.tokenizer, "pad_token_id", None)
        pad = getattr(model.config.get_text_config(), "pad_token_id", None) if pad is None else pad
        if pad is None:
            raise CodebookError("build-prototypes: `processor` has no pad token, whose embedding stands for a token "
                                "that is left out, allowed: a tokenizer with `pad_token` set")
        self.pad = self._embed(torch.tensor([pad], device=self.device))[0]

    def _rendered(self, question: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        try:
            return self.processor.apply_chat_template([{"role": "user", "content": content}],
                                                      add_generation_prompt=True, tokenize=False)
        except ValueError as error:
            raise CodebookError(f"build-prototypes: `processor` has no chat template ({error}), allowed: one with a "
                                "template, or a `prompt` with the image's placeholder") from error

    @torch.no_grad()
    def see(self, path: str | os.PathLike) -> Seen:
        """Encode an image.

        Raises:
            UnusableImage: a file that is no image, or features with NaN or infinities.
        """
        image, digest = read_image(path)
        inputs = self.processor(text=self.text, images=[image], return_tensors="pt")
        ids = inputs["input_ids"][0].to(self.device)
        (found,) = (ids == self.config.image_token_id).nonzero(as_tuple=True)
        pixels = {key: inputs[key].to(self.device) for key in _PIXELS if inputs.get(key) is not None}
        pixels["pixel_values"] = pixels["pixel_values"].to(self.model.dtype)
        output = self.backbone.get_image_features(**pixels, return_dict=True)
        # Of several tiles the last one is the whole image (InternVL); a packed image begins with it (LLaVA-NeXT).
        features = output.pooler_output[-1 if self.config.model_type == "internvl" else 0]
        grid = self._grid(len(features), pixels)
        count = grid[0] * grid[1]
        deep = tuple(layer[0] for layer in getattr(output, "deepstack_features", None) or ())
        features = features[:count]
        if not features.isfinite().all():
            raise UnusableImage("its features have NaN or infinite entries")
        return Seen(features, grid, ids[:found[0]], ids[found[-1] + 1:], deep, self._box(image), digest)

    @torch.no_grad()
    def logits(self, seen: Seen, visual: Tensor, deep: tuple[Tensor, ...] = ()) -> Tensor:
        """`[B, V]` float64 logits of the first answer token after a prompt with `visual` `[B, n, D]` in `seen.grid`."""
        batch, count, _ = visual.shape
        prefix, suffix = (self._embed(part).expand(batch, -1, -1) for part in (seen.prefix, seen.suffix))
        embeds = torch.cat([prefix, visual, suffix], 1)
        more: dict[str, Any] = {}
        if deep:
            mask = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=self.device)
            mask[:, prefix.shape[1]:prefix.shape[1] + count] = True
            more = {"visual_pos_masks": mask, "deepstack_visual_embeds": [layer.flatten(0, 1) for layer in deep]}
        states = self.backbone.language_model(inputs_embeds=embeds, position_ids=self._positions(seen, batch),
                                              use_cache=False, **more).last_hidden_state
        return self.model.lm_head(states[:, -1]).double()

    def _embed(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.get_input_embeddings()(ids)

    def _positions(self, seen: Seen, batch: int) -> Tensor:
        """`[B, S]`, or `[3, B, S]` with M-RoPE."""
        rows, columns = seen.grid
        image = seen.prefix.new_full((rows * columns,), self.config.image_token_id)
        ids = torch.cat([seen.prefix, image, seen.suffix])[None]
        if not self.family.mrope:
            return torch.arange(ids.shape[1], device=self.device).expand(batch, -1)
        merge = self.config.vision_config.spatial_merge_size
        grid = torch.tensor([[1, rows * merge, columns * merge]], device=self.device)
        kinds = (ids == self.config.image_token_id).int()
        return self.backbone.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid)[0].expand(-1, batch, -1)

    def _grid(self, count: int, pixels: dict[str, Tensor]) -> tuple[int, int]:
        if self.family.mrope:
            merge = self.config.vision_config.spatial_merge_size
            _, height, width = pixels["image_grid_thw"][0].tolist()
            return height // merge, width // merge
        if self.config.model_type in ("llava_next", "llava_onevision"):
            vision = self.config.vision_config
            side = vision.image_size // vision.patch_size
        else:
            side = isqrt(count)
            if side * side != count:
                raise CodebookError(f"build-prototypes: `model` gives {count} tokens for an image, allowed: a square "
                                    "number, since they are probed in squares")
        return side, side

    def _box(self, image: Any) -> tuple[float, float, float, float]:
        settings = self.processor.image_processor
        size, crop = getattr(settings, "size", None) or {}, getattr(settings, "crop_size", None) or {}
        if not getattr(settings, "do_center_crop", False) or self.family.mrope or not size or not crop:
            return _WHOLE
        share = crop["height"] / (size["shortest_edge"] if "shortest_edge" in size else size["height"])
        shortest = min(image.size) * share
        across, down = shortest / image.width, shortest / image.height
        return (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2
