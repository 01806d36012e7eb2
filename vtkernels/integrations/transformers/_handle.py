"""`apply`: hooks around the language model and its layers, and the way back."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ... import methods
from ._cache import compact_layers
from ._collect import Collected, Collecting, Collector
from ._families import backbone, family_of, grids, refuse_mixed_layers, visual_ids
from ._prompt import Prompt, pick
from ._select import Seen, Signals, check_signals, select

POSITIONS = ("preserve", "pack")


@dataclass
class Group:
    """Neighbouring layers that hold the same tokens. `mask` `[B, S]`: those that are not padding."""

    first: int
    mask: Tensor
    rotary: tuple[Tensor, ...] = ()      # of the prefill, where a stage has dropped tokens
    position_ids: Tensor | None = None
    built: Any = None                    # the attention mask of the present step


@dataclass
class Progress:
    """One sequence of calls on one cache."""

    prompt: Prompt
    groups: list[Group]
    next_position: Tensor  # [.., B, 1]
    prefill: bool = True

    def group(self, layer: int) -> Group:
        return next(g for g in reversed(self.groups) if g.first <= layer)


class Handle:
    """A method at work in a model. `remove()`, or the end of a `with` block, restores the model.

    `kept` tells of the last prefill which columns of the prompt stayed: one `[B, S']` int64 tensor for each time that
    the method acted, -1 for padding.
    """

    def __init__(self, model: Any, method: methods.Method, positions: str) -> None:
        if positions not in POSITIONS:
            raise ValueError(f"apply: `positions` is {positions!r}, allowed: {' or '.join(map(repr, POSITIONS))}")
        self.model, self.method, self.positions = model, method, positions
        self.family, self.language = family_of(model), backbone(model).language_model
        self.compacts = method.info.family == "cache"
        self.looks_ahead = method.decoder_layer == "next"
        self.stages = {stage.layer: i for i, stage in enumerate(method.stages)}
        self._check()
        self.kept: list[Tensor] = []
        self._prompt: Prompt | None = None
        self._now: Progress | None = None
        self._progress: weakref.WeakKeyDictionary[Any, Progress] = weakref.WeakKeyDictionary()
        self._seen: dict[int, Seen] = {}
        self._states: dict[int, Tensor] = {}  # what goes into each layer, for cache methods that look at it
        self._looking = False
        self._tower: list[Seen] = []
        self._collecting: list[Collecting] = []
        self._hooks: list[Any] = []
        try:
            self._attach()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for collecting in self._collecting:
            collecting.close()
        self._hooks, self._collecting = [], []

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()

    def _check(self) -> None:
        """What cannot work is refused here, before any call."""
        no_tower = "" if self.family.tower else "the tokens of this family are not the patches of its tower"
        has = {"hidden": "", "grid": "", "text": "",
               "vision": no_tower if not self.stages and not self.compacts else "only before the language model",
               "decoder": "" if self.stages or self.compacts else "only between decoder layers",
               "spans": "" if self.compacts else "only of a cache"}
        check_signals(self.method, has)
        count = len(self.language.layers)
        if self.stages or self.compacts:
            refuse_mixed_layers(self.model, "pruning inside the language model")
        for layer in self.stages:
            lowest = 1 if "decoder" in self.method.info.needs and not self.looks_ahead else 0
            lowest = max(lowest, len(getattr(self.model.config.vision_config, "deepstack_visual_indexes", ())))
            if not lowest <= layer < count:
                raise ValueError(f"apply: `method` acts after {layer} layers, allowed for this model: {lowest} to "
                                 f"{count - 1}")

    def _attach(self) -> None:
        layers, needs = self.language.layers, (*self.method.info.needs, *self.method.takes)
        pre = {"with_kwargs": True}
        self._hooks.append(backbone(self.model).register_forward_pre_hook(self._before_backbone, **pre))
        self._hooks.append(self.language.register_forward_pre_hook(self._before_language, **pre))
        self._hooks.append(self.language.register_forward_hook(self._after_language, always_call=True))
        if self.stages:
            for i, layer in enumerate(layers):
                hook = lambda module, args, kwargs, i=i: self._before_layer(i, args, kwargs)
                self._hooks.append(layer.register_forward_pre_hook(hook, **pre))
        if self.compacts and "hidden" in needs:
            for i, layer in enumerate(layers):
                keep = lambda module, args, i=i: self._states.__setitem__(i, args[0])
                self._hooks.append(layer.register_forward_pre_hook(keep))
        if self.compacts:
            self._collect(self.language, {layer.self_attn: self._into(i) for i, layer in enumerate(layers)})
        elif "decoder" in needs:
            places = (0,) if self.looks_ahead else (-2, -1)
            watched = {layer + i for layer in self.stages for i in places if layer + i >= 0}
            self._collect(self.language, {layers[i].self_attn: self._into(i) for i in sorted(watched)})
        if "vision" in needs:
            tower = backbone(self.model).vision_tower
            attentions = [m for name, m in tower.named_modules() if name.endswith("self_attn")]
            self._hooks.append(tower.register_forward_pre_hook(lambda *_: self._tower.clear()))
            self._collect(tower, dict.fromkeys(attentions, self._into_tower))

    def _collect(self, owner: nn.Module, modules: dict[Any, Collector]) -> None:
        self._collecting.append(Collecting(owner, modules))

    def _into(self, layer: int) -> Collector:
        def collect(query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> None:
            if self._now is not None and self._now.prefill:
                self._seen[layer] = Seen(query, key[:, :, :query.shape[2]], value[:, :, :query.shape[2]],
                                         kwargs.get("scaling"))
                if self._looking:
                    raise Collected
        return collect

    def _into_tower(self, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> None:
        self._tower.append(Seen(query, key, value, kwargs.get("scaling")))

    def _before_backbone(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        self._prompt = None
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            if any(kwargs.get(name) is not None for name in ("pixel_values", "pixel_values_videos")):
                raise ValueError("apply: `input_ids` is missing beside images, allowed: token ids with placeholders")
            return
        if ids.shape[1] == 1:  # a decoded token
            return
        mask = kwargs.get("attention_mask")
        if isinstance(mask, dict):
            mask = mask["full_attention"]
        if mask is not None and mask.dim() == 4:  # prepared for a static cache: the last row sees what is not padding
            mask = mask[:, 0, -1, :ids.shape[1]]
            mask = mask if mask.dtype == torch.bool else mask == 0
        unit = 0
        if self.family.tower:
            vision = self.model.config.vision_config
            unit = (vision.image_size // vision.patch_size) ** 2
        self._prompt = Prompt.read(ids, None if mask is None else mask.long(), visual_ids(self.model),
                                   grids(self.model, kwargs), unit)

    def _before_language(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        cache, prompt = kwargs.get("past_key_values"), self._prompt
        self._now, self._seen = None, {}
        # The length of a static cache is on the device: it is read for prompts, not for decoded tokens.
        begun = prompt is not None and cache is not None and int(cache.get_seq_length()) > 0
        if begun and prompt is not None and prompt.has_images:
            raise ValueError("apply: `input_ids` has images after the cache was begun, allowed: all images in one "
                             "prefill (no `prefill_chunk_size`)")
        if prompt is not None and not begun and cache is not None:
            self._progress.pop(cache, None)  # emptied for another prompt
        progress = None if cache is None else self._progress.get(cache)
        if progress is not None:
            return args, {**kwargs, **self._decode(progress, kwargs["inputs_embeds"])}
        if prompt is None or not prompt.has_images:
            return None
        if cache is None and kwargs.get("use_cache", self.language.config.use_cache):
            from transformers import DynamicCache

            cache = kwargs["past_key_values"] = DynamicCache(config=self.language.config)
        kwargs = {**kwargs, **self._prefill(prompt, kwargs)}
        if cache is not None:
            assert self._now is not None
            self._progress[cache] = self._now
        return args, kwargs

    def _prefill(self, prompt: Prompt, kwargs: dict[str, Any]) -> dict[str, Any]:
        hidden = kwargs["inputs_embeds"]
        batch, width = hidden.shape[:2]
        self.kept = []
        pads = torch.tensor(prompt.pads, device=hidden.device)[:, None]
        columns = torch.arange(width, device=hidden.device)
        mask = columns >= pads
        positions = kwargs.get("position_ids")
        if positions is None:  # the model would count padding, too
            positions = columns[None]
        positions = positions.expand(*positions.shape[:-2], batch, width)
        after = _after_last(positions)
        changed: dict[str, Any] = {}
        if not self.stages and not self.compacts:
            signals = Signals(vision=self._tower)
            prompt, index, hidden = prompt.keep(hidden, select(self.method, 0, hidden, prompt, signals))
            self.kept.append(index)
            changed = {"inputs_embeds": hidden, **_deepstack(kwargs, index)}
            mask, positions = index >= 0, pick(positions, index, -1)
            if self.positions == "pack":
                packed = (mask.cumsum(-1) - 1).clamp(min=0)
                positions, after = packed.expand(positions.shape), packed[:, -1:].expand(after.shape) + 1
        self._tower = []
        self._now = Progress(prompt, [Group(0, mask)], after)
        return {**changed, "attention_mask": mask.long(), "position_ids": positions}

    def _decode(self, progress: Progress, embeds: Tensor) -> dict[str, Any]:
        """The positions go on after the prompt; every group of layers has its own mask."""
        new = embeds.shape[1]
        positions = progress.next_position + torch.arange(new, device=embeds.device)
        progress.next_position, progress.prefill = progress.next_position + new, False
        for group in progress.groups:
            group.mask = nn.functional.pad(group.mask, (0, new), value=True)
            group.rotary, group.position_ids, group.built = (), None, None
        self._now = progress
        return {"attention_mask": progress.groups[0].mask.long(), "position_ids": positions}

    def _before_layer(self, layer: int, args: tuple, kwargs: dict[str, Any]) -> Any:
        progress = self._now
        if progress is None:
            return None
        if progress.prefill and layer in self.stages:
            args, kwargs = self._stage(progress, layer, args, kwargs)
        group = progress.group(layer)
        if group is progress.groups[0]:
            return args, kwargs
        if group.built is None:
            from transformers.masking_utils import create_causal_mask

            group.built = create_causal_mask(self.language.config, args[0], group.mask.long(),
                                             kwargs.get("past_key_values"), layer_idx=layer)
        kwargs = {**kwargs, "attention_mask": group.built}
        if group.rotary:
            kwargs |= {"position_embeddings": group.rotary}
            if kwargs.get("position_ids") is not None:
                kwargs["position_ids"] = group.position_ids
        return args, kwargs

    def _stage(self, progress: Progress, layer: int, args: tuple, kwargs: dict[str, Any]) -> tuple:
        before = progress.group(layer)
        if self.looks_ahead:
            seen = [self._look_ahead(layer, before, args[0], kwargs)]
        else:
            seen = [self._seen[i] for i in (layer - 2, layer - 1) if i in self._seen and i >= before.first]
        results = select(self.method, self.stages[layer], args[0], progress.prompt, Signals(decoder=seen))
        progress.prompt, index, hidden = progress.prompt.keep(args[0], results)
        rotary = before.rotary or kwargs["position_embeddings"]
        ids = before.position_ids if before.rotary else kwargs.get("position_ids")
        rotary = tuple(pick(t, index, -2) for t in rotary)
        if ids is not None:
            ids = pick(ids.expand(*ids.shape[:-2], *before.mask.shape), index, -1)
        progress.groups.append(Group(layer, index >= 0, rotary, ids))
        self.kept.append(pick(self.kept[-1] + 1, index, -1) - 1 if self.kept else index)
        return (hidden, *args[1:]), kwargs

    def _look_ahead(self, layer: int, group: Group, hidden: Tensor, kwargs: dict[str, Any]) -> Seen:
        """The queries and keys that a layer would make, its attention left out and no cache written."""
        module = self.language.layers[layer]
        options = {**kwargs, "past_key_values": None, "attention_mask": None}
        if group.rotary:
            options |= {"position_embeddings": group.rotary, "position_ids": group.position_ids}
        self._looking = True
        try:
            module.self_attn(hidden_states=module.input_layernorm(hidden), **options)
        except Collected:
            return self._seen.pop(layer)
        finally:
            self._looking = False
        raise RuntimeError(f"apply: layer {layer} did not call its attention function")

    def _after_language(self, module: Any, args: tuple, output: Any) -> None:
        progress, self._now = self._now, None
        if progress is not None and progress.prefill and self.compacts and output is not None:
            self._compact(progress, output.past_key_values)
        self._seen, self._states = {}, {}

    def _compact(self, progress: Progress, cache: Any) -> None:
        if cache is None:
            return
        if len(set(progress.prompt.pads)) > 1 or progress.prompt.pads[0]:
            raise ValueError("apply: `attention_mask` has padding, which a cache method would treat like tokens, "
                             "allowed: rows of equal length")
        lengths = compact_layers(cache, self.method, self._seen, self._states, progress.prompt)
        device = progress.groups[0].mask.device
        batch = progress.groups[0].mask.shape[0]
        progress.groups = [Group(i, torch.ones(batch, n, dtype=torch.bool, device=device))
                           for i, n in enumerate(lengths)]


def _after_last(positions: Tensor) -> Tensor:
    """The first position after the prompt, `[.., B, 1]`. With M-RoPE all axes go on after the largest of them."""
    if positions.dim() == 2:
        return positions[:, -1:] + 1
    axes = positions[-3:].amax((0, 2))[None, :, None].expand(3, -1, -1)
    return torch.cat([positions[:-3, :, -1:], axes]) + 1


def _deepstack(kwargs: dict[str, Any], index: Tensor) -> dict[str, Any]:
    """The states that the tower adds to the first decoder layers, for the tokens that stay."""
    visual, states = kwargs.get("visual_pos_masks"), kwargs.get("deepstack_visual_embeds")
    if visual is None or states is None:
        return {}
    number = (visual.flatten().cumsum(0) - 1).view(visual.shape)
    kept = pick(visual.long(), index, -1).bool()
    rows = pick(number, index, -1)[kept]
    return {"visual_pos_masks": kept, "deepstack_visual_embeds": [layer[rows] for layer in states]}
