"""Which backend runs an op: a fixed order per device, and the reason why each other one does not.

A backend is a module beside the op's contract (`reference.py`, `triton.py`) or a native library (`_C_cpu`, `_C_cuda`).
Triton and CUDA implement the `.out` variant only: the functional op allocates from the contract and calls it.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import _env, _library, _native

_OPS_OF_STAGE = {
    "score": ("prototype_scores", "prototype_topm", "prototype_softmax_scores", "attention_scores",
              "attention_scores_varlen", "temporal_scores", "row_statistics", "subspace_residual"),
    "select": ("select_topk", "select_topk_varlen", "select_quota", "select_threshold", "select_top_p",
               "allocate_budget", "select_diverse", "match_bipartite", "cluster_density_peaks", "cluster_kmeans",
               "cluster_kmedoids"),
    "compact": ("gather_tokens", "gather_kv", "gather_kv_inplace", "rotate_keys", "merge_tokens", "pool_span",
                "shuffle_tokens", "unshuffle_tokens", "quantize_kv", "dequantize_kv", "compact_kv_paged"),
    "attend": ("cell_attention", "argmax_attention"),
    "fused": ("prune_topk", "prune_topk_varlen", "prune_topk_paged"),
}
STAGES = {op: stage for stage, ops in _OPS_OF_STAGE.items() for op in ops}

ORDER = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def refusal(backend: str, device: str, op: str | None = None) -> str | None:
    """Why `backend` cannot run (this op) on tensors of this device type, or None when it can."""
    if backend == "reference":
        return None
    if backend == "cpu":
        return f"the inputs are on {device}" if device != "cpu" else _native.load("_C_cpu")
    if backend == "triton":
        if not _has_triton():
            return "triton is not installed"
        if device == "cpu":
            return None if interpreting() else "the inputs are on cpu, where Triton needs TRITON_INTERPRET=1"
        return None if device == "cuda" else f"the inputs are on {device}"
    if device != "cuda":
        return f"the inputs are on {device}"
    if torch.version.hip:
        return "this is a ROCm build of torch"
    if op is not None and op not in _library.CUDA_OPS:
        return f"{op} has no CUDA C++ kernel, only a Triton one"
    return _native.load("_C_cuda")


def choose(device: str, op: str | None = None) -> str:
    """The backend (of an op) for a device type, after VTKERNELS_BACKEND."""
    if _env.BACKEND != "auto":
        reason = refusal(_env.BACKEND, device, op)
        if reason:
            raise RuntimeError(f"VTKERNELS_BACKEND={_env.BACKEND} cannot run here: {reason}")
        return _env.BACKEND
    return next(b for b in ORDER.get(device, ("reference",)) if refusal(b, device, op) is None)


def _module(op: str, backend: str) -> Any:
    return importlib.import_module(f"{__package__}.{STAGES[op]}.{op}.{backend}")


@cache
def function(name: str, backend: str) -> Callable:
    """The implementation of an op (`prune_topk`) or variant (`prune_topk.out`), with the arguments of its schema."""
    op, is_out = name.removesuffix(".out"), name.endswith(".out")
    contract = _library.CONTRACTS[name]
    outs = _library.OUT_ARGS[op]
    if backend == "cpu":
        packet = getattr(_library.OPS, op)
        return packet.out if is_out else packet.default
    if backend == "reference":
        run = getattr(_module(op, backend), op)

        def reference(*args: Any, **kwargs: Any) -> Any:
            contract(*args, **kwargs)
            if not is_out:
                return run(*args, **kwargs)
            buffers = [kwargs.pop(arg) for arg in outs]
            kwargs.pop("workspace", None)
            results = run(*args, **kwargs)
            for buffer, result in zip(buffers, results if len(outs) > 1 else (results,)[:len(outs)], strict=True):
                if isinstance(buffer, Tensor):
                    buffer.copy_(result)
                else:
                    for b, r in zip(buffer, result, strict=True):
                        b.copy_(r)
            return None

        return reference
    launch = getattr(_module(op, backend), f"{op}_out") if backend == "triton" else _cuda_out(op)
    if is_out:

        def checked(*args: Any, **kwargs: Any) -> None:
            contract(*args, **kwargs)
            launch(*args, **kwargs)

        return checked

    def functional(*args: Any, **kwargs: Any) -> Any:
        results = _library.allocate(contract(*args, **kwargs))
        launch(*args, **kwargs, **dict(zip(outs, results if len(outs) > 1 else (results,)[:len(outs)], strict=True)))
        return results

    return functional


def _cuda_out(op: str) -> Callable:
    return getattr(getattr(torch.ops, _library.CUDA_NAMESPACE), op).out


def _launcher(name: str, device: str) -> Callable:
    op = name.removesuffix(".out")
    return lambda *args, **kwargs: function(name, choose(device, op))(*args, **kwargs)


def register() -> None:
    """Attach the backends to the schemas. `_C_cpu` attaches its own kernels to the CPU key when it is loaded."""
    native_cpu = _env.BACKEND in ("auto", "cpu") and _native.load("_C_cpu") is None
    for name in _library.SCHEMAS:
        _library.LIBRARY.impl(name, function(name, "reference"), "CompositeExplicitAutograd")
        _library.LIBRARY.impl(name, _launcher(name, "cuda"), "CUDA")
        if not native_cpu and _env.BACKEND != "reference":
            _library.LIBRARY.impl(name, _launcher(name, "cpu"), "CPU")


@dataclass(frozen=True)
class Explanation:
    """What `explain` answers: the backend that runs, and why each other one does not."""

    op: str
    device: str
    backend: str
    others: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.op} on {self.device}: {self.backend}"]
        return "\n".join(lines + [f"  not {name}: {why}" for name, why in self.others.items()])


def explain(op: str, *args: Any, **kwargs: Any) -> Explanation:
    """Say which backend runs `op` on these arguments, and why each other one does not.

    Args:
        op: name of an op, such as `"prune_topk"`.
        args, kwargs: the arguments of the call. The device of the first tensor counts; without tensors, the CPU.

    Example:
        >>> print(vtkernels.explain("select_topk", torch.rand(1, 8), 2))  # doctest: +SKIP
        select_topk on cpu: cpu
          not reference: cpu comes before it
          ...
    """
    if op not in STAGES:
        raise ValueError(f"explain: `op` is {op!r}, allowed: {', '.join(STAGES)}")
    tensor = next((t for t in _tensors((*args, *kwargs.values()))), None)
    device = "cpu" if tensor is None else tensor.device.type
    chosen = choose(device, op)
    others = {}
    for backend in _env.BACKENDS:
        if backend == chosen:
            continue
        if _env.BACKEND != "auto":
            others[backend] = f"VTKERNELS_BACKEND={_env.BACKEND}"
        else:
            order = ORDER.get(device, ("reference",))
            others[backend] = refusal(backend, device, op) or (
                f"{chosen} comes before it" if backend in order else f"only on request (VTKERNELS_BACKEND={backend})")
    return Explanation(op, device, chosen, others)


def _tensors(values: Any) -> Any:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
