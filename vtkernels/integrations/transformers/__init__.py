"""Any suitable method in a loaded transformers model: one line puts it on, one takes it off.

Needs transformers 5.16 or newer. The seams are hooks of torch and the attention registry of transformers; no class is
changed.
"""

from typing import Any

from ... import methods
from ._cache import compact_cache
from ._encode import prune_inputs
from ._families import FAMILIES
from ._handle import Handle

__all__ = ["FAMILIES", "Handle", "apply", "compact_cache", "prune_inputs"]


def apply(model: Any, method: str | methods.Method, *, positions: str = "preserve", **config: Any) -> Handle:
    """Let a method prune the visual tokens of every prompt that the model gets.

    Where it acts follows from the method: before the language model (a method of the encoder or projector), between
    decoder layers (a schedule, such as FastV or PyramidDrop), or on the cache after the prefill (a cache method).
    `generate`, batches padded on the left, several images, tiles and videos work as before. Each image (or run of
    neighbouring visual tokens) is pruned for itself. Hidden states and logits of a call have one row per kept token.

    Args:
        model: LLaVA, LLaVA-NeXT, LLaVA-OneVision, Qwen2-VL, Qwen2.5-VL, Qwen3-VL or InternVL, loaded with transformers.
        method: a name of `vtkernels.methods`, then `config` is its configuration; or a method.
        positions: `"preserve"`: every token keeps its position id (all three with M-RoPE), and decoding goes on after
            the last one of the whole prompt. `"pack"`: kept tokens are numbered without gaps; only for methods before
            the language model.

    Returns:
        A handle: `handle.remove()` restores the model; also a context manager.

    Raises:
        ValueError: a family that is not known, a method that needs a signal which this seam does not have, a layer that
            the model does not have, layers with sliding windows or linear attention; at a call: padding on the right,
            images after the prefill.

    Example:
        >>> handle = apply(model, "divprune", keep=0.25)                # doctest: +SKIP
        >>> model.generate(**processor(images, text), max_new_tokens=8)  # doctest: +SKIP
        >>> handle.remove()                                              # doctest: +SKIP
    """
    if isinstance(method, str):
        method = methods.get(method, **config)
    elif config:
        raise TypeError(f"apply: `config` is {', '.join(config)} beside a method, allowed: with a method's name only")
    if positions == "pack" and (method.stages or method.info.family == "cache"):
        raise ValueError("apply: `positions` is 'pack' for a method inside the language model, allowed: 'preserve', "
                         "since the layers before it have rotated the keys already")
    return Handle(model, method, positions)
