"""A plug-in for SGLang: any suitable method prunes the tiles of InternVL images and videos before the language model.

Written against the source of SGLang 0.5.23 and checked against it; not run in an engine yet. SGLang finds `register`
through the entry point group `sglang.srt.plugins` and calls it in each of its processes. A model whose configuration
has no entry `vtkernels` is untouched:

    python -m sglang.launch_server --model-path OpenGVLab/InternVL3-8B --trust-remote-code \\
        --json-model-override-args '{"vtkernels": {"method": "divprune", "keep": 0.25}}'
"""

from ._config import KEY, Pruner, read
from ._hooks import HOOKS

__all__ = ["HOOKS", "KEY", "Pruner", "read", "register"]


def register() -> None:
    """Hook the model's feature function and the processor's count of placeholders."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for target, hook in HOOKS.items():
        HookRegistry.register(target, hook, HookType.AROUND)
