"""A plugin for vLLM: any suitable method prunes images and videos before the language model.

vLLM finds `register` through the entry point group `vllm.general_plugins` and calls it in each of its processes. It
adds architectures of its own names beside those of vLLM, so an engine that does not ask for pruning is untouched.
"""

from dataclasses import dataclass, field
from typing import Any

from ._config import ARCHITECTURES, KEY, read

__all__ = ["ARCHITECTURES", "Prune", "prune", "register"]


def register() -> None:
    """Make the architectures known to vLLM. May be called any number of times."""
    from vllm import ModelRegistry

    for name, module in (("LlavaForConditionalGeneration", "_llava"),
                         ("Qwen2_5_VLForConditionalGeneration", "_qwen2_5_vl")):
        ModelRegistry.register_model(ARCHITECTURES[name], f"{__name__}.{module}:{ARCHITECTURES[name]}")


@dataclass(frozen=True)
class Prune:
    """What `prune` returns: sets the model's architecture and its entry `vtkernels`. Pickles, as vLLM needs it to."""

    entry: dict[str, Any] = field(default_factory=dict)

    def __call__(self, config: Any) -> Any:
        if str(config.model_type).startswith("dummy_"):  # vLLM asks first whether the model type changes
            return config
        found = list(config.architectures or ())
        known = {**ARCHITECTURES, **{name: name for name in ARCHITECTURES.values()}}
        if not found or found[0] not in known:
            raise ValueError(f"prune: `hf_overrides` prunes a model of architecture {', '.join(found) or None}, "
                             f"allowed: {', '.join(ARCHITECTURES)}")
        config.architectures = [known[found[0]]]
        setattr(config, KEY, self.entry)
        read(config)
        return config


def prune(method: str | None = None, *, image: dict[str, Any] | None = None, video: dict[str, Any] | None = None,
          **config: Any) -> Prune:
    """What to pass as `hf_overrides` of `vllm.LLM` or its engine arguments.

    The number of tokens that stay is computed on the host from the grid alone, before the encoder runs, so that the
    scheduler, the paged cache and prefix caching see a prompt that is short from the start. LLaVA numbers what stays
    without gaps; Qwen2.5-VL keeps the M-RoPE positions of the unpruned grid. Nothing waits for the device.

    On the command line the same is
    `--hf-overrides '{"architectures": ["VtkernelsLlavaForConditionalGeneration"], "vtkernels": {"method": ..}}'`,
    or `VtkernelsQwen2_5_VLForConditionalGeneration`. Both keys are needed: vLLM ignores the second one by itself.

    Args:
        method: a name of `vtkernels.methods`, for images and videos; `config` is its configuration, in values that
            JSON can hold. `prototypes` is the path of a codebook that `vtkernels.prototypes.save` wrote.
        image, video: instead, an entry `{"method": .., **config}` for each. What is not named is not pruned.

    Raises:
        ValueError, when the engine starts: a model that is not known, a method that needs more than the tokens and
            their grid, acts inside the language model, or does not keep an exact number of tokens; a share outside
            (0, 1]; pipeline parallelism and other features of the engine that the model cannot be pruned under.

    Example:
        >>> from vtkernels.integrations.vllm import prune
        >>> llm = vllm.LLM("llava-hf/llava-1.5-7b-hf", hf_overrides=prune("divprune", keep=0.25))  # doctest: +SKIP
        >>> prune(image={"method": "divprune", "keep": 0.25}, video={"method": "evs"}).entry["video"]
        {'method': 'evs'}
    """
    if method is not None:
        if image is not None or video is not None:
            raise ValueError("prune: `method` is given beside `image` or `video`, allowed: one or the other")
        return Prune({"method": method, **config})
    if config:
        raise ValueError(f"prune: `config` is {', '.join(config)} without a method, allowed: with a method's name only")
    return Prune({name: entry for name, entry in (("image", image), ("video", video)) if entry is not None})
