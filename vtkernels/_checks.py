"""Host-side checks of every backend written in Python. Each error names the argument, what came, what is allowed.

All of them look at metadata only, so they run on fake tensors and symbolic sizes and never synchronise with a device.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INDEX_DTYPES = (torch.int32, torch.int64)
KV_LAYOUTS = ("HND", "NHD")


def fail(kind: type[Exception], op: str, arg: str, got: Any, allowed: str) -> NoReturn:
    raise kind(f"{op}: `{arg}` is {got}, allowed: {allowed}")


def names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def shape(t: Tensor) -> str:
    return str(tuple(t.shape))


def dense(op: str, arg: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        fail(TypeError, op, arg, type(t).__name__, "a torch.Tensor")
    if t.layout is not torch.strided or t.is_nested:
        fail(TypeError, op, arg, f"a tensor of layout {t.layout}", "a dense strided tensor")
    if t.is_quantized:
        fail(TypeError, op, arg, f"a quantised tensor ({t.dtype})", "a plain dtype")


def floating(op: str, arg: str, t: Any) -> None:
    dense(op, arg, t)
    if t.dtype not in FLOATS:
        fail(TypeError, op, arg, f"a tensor of {names([t.dtype])}", names(FLOATS))


def rank(op: str, arg: str, t: Tensor, dims: str) -> None:
    want = dims.count(",") + 1
    if t.dim() != want:
        fail(ValueError, op, arg, f"a {t.dim()}-D tensor of shape {shape(t)}", f"a {want}-D tensor [{dims}]")


def same_device(op: str, arg: str, t: Tensor, other: str, ref: Tensor) -> None:
    if t.device != ref.device:
        fail(ValueError, op, arg, f"on {t.device}", f"the device of `{other}` ({ref.device})")


def size(op: str, arg: str, got: Any, want: Any, what: str) -> None:
    if got != want:
        fail(ValueError, op, arg, f"of size {got} in {what}", f"{want}")


def choice(op: str, arg: str, got: Any, allowed: Sequence[str]) -> None:
    if got not in allowed:
        fail(ValueError, op, arg, repr(got), " or ".join(repr(a) for a in allowed))


def in_range(op: str, arg: str, got: Any, low: Any, high: Any, meaning: str) -> None:
    if got < low or got > high:
        fail(ValueError, op, arg, got, f"{low} to {high} ({meaning})")


def prototypes(op: str, protos: Any, rnorm: Any, tokens: Tensor, token_arg: str, grouped: bool = False) -> None:
    floating(op, "prototypes", protos)
    rank(op, "prototypes", protos, "G, P, D" if grouped else "P, D")
    if protos.shape[-2] < 1:
        fail(ValueError, op, "prototypes", f"empty, of shape {shape(protos)}", "at least one prototype")
    if protos.dtype != tokens.dtype:
        fail(TypeError, op, "prototypes", f"a tensor of {names([protos.dtype])}",
             f"the dtype of `{token_arg}` ({names([tokens.dtype])})")
    same_device(op, "prototypes", protos, token_arg, tokens)
    size(op, "prototypes", protos.shape[-1], tokens.shape[-1], f"D (that of `{token_arg}`)")
    if rnorm is not None:
        vector(op, "prototype_rnorm", rnorm, protos.shape[0], (torch.float32,), tokens, "P")


def vector(op: str, arg: str, t: Any, length: Any, dtypes: Sequence[torch.dtype], ref: Tensor, what: str) -> None:
    """A 1-D tensor of a given length, one of `dtypes`, on the device of `ref`."""
    dense(op, arg, t)
    if t.dtype not in dtypes:
        fail(TypeError, op, arg, f"a tensor of {names([t.dtype])}", names(dtypes))
    rank(op, arg, t, what)
    size(op, arg, t.shape[0], length, what)
    same_device(op, arg, t, "the input", ref)


def indices(op: str, idx: Any, batch: Any, ref: Tensor) -> None:
    dense(op, "indices", idx)
    if idx.dtype not in INDEX_DTYPES:
        fail(TypeError, op, "indices", f"a tensor of {names([idx.dtype])}", names(INDEX_DTYPES))
    rank(op, "indices", idx, "B, k")
    size(op, "indices", idx.shape[0], batch, "B")
    same_device(op, "indices", idx, "the input", ref)


def kv_token_dim(op: str, kv_layout: str, packed: bool = False) -> int:
    """Position of the token dimension: dense [B,H,N,d] or [B,N,H,d]; packed [H,T,d] or [T,H,d]."""
    choice(op, "kv_layout", kv_layout, KV_LAYOUTS)
    return (2 if kv_layout == "HND" else 1) - packed


def kv_caches(op: str, kv: Any, kv_layout: str, batch: Any, tokens: Any, ref: Tensor,
              packed: bool = False) -> list[Tensor]:
    token_dim = kv_token_dim(op, kv_layout, packed)
    dims = {(0, "HND"): "B, H, N, d", (0, "NHD"): "B, N, H, d", (1, "HND"): "H, T, d", (1, "NHD"): "T, H, d"}
    caches = [] if kv is None else list(kv)
    for i, t in enumerate(caches):
        arg = f"kv[{i}]"
        dense(op, arg, t)
        rank(op, arg, t, dims[int(packed), kv_layout])
        same_device(op, arg, t, "the input", ref)
        if not packed:
            size(op, arg, t.shape[0], batch, "B")
        size(op, arg, t.shape[token_dim], tokens, "tokens")
    return caches


def span(op: str, n: Any, start: Any, length: Any, starts: Tensor | None, batch: Any, ref: Tensor,
         args: tuple[str, str] = ("span_start", "span_len")) -> Any:
    """Length of the visual span after all checks."""
    start_arg, len_arg = args
    if starts is not None:
        vector(op, "span_starts", starts, batch, (torch.int32,), ref, "B")
        in_range(op, len_arg, length, 0, n, "with span_starts the span length is explicit, at most N")
        return length
    in_range(op, start_arg, start, 0, n, "the row has N tokens")
    if length == -1:
        return n - start
    in_range(op, len_arg, length, 0, n - start, f"-1, or at most N - {start_arg}")
    return length


def output(op: str, arg: str, out: Any, like: Any, dtypes: Sequence[torch.dtype] | None = None) -> None:
    """A caller's `out` buffer: shape, dtype and device of `like`, unit stride in the last dimension."""
    dense(op, arg, out)
    allowed = dtypes or (like.dtype,)
    if out.dtype not in allowed:
        fail(TypeError, op, arg, f"a tensor of {names([out.dtype])}", names(allowed))
    if tuple(out.shape) != tuple(like.shape):
        fail(ValueError, op, arg, f"of shape {shape(out)}", shape(like))
    same_device(op, arg, out, "the input", like)
    if out.dim() and out.shape[-1] > 1 and out.stride(-1) != 1:
        fail(ValueError, op, arg, f"of last stride {out.stride(-1)}", "1")


def status_word(op: str, status: Any, ref: Tensor) -> None:
    if status is not None:
        vector(op, "status", status, 1, (torch.int32,), ref, "1")


def not_nested(op: str, **tensors: Any) -> None:
    """torch has no dispatch of ours to refuse nested tensors with, so the Python fronts do."""
    for arg, value in tensors.items():
        many = isinstance(value, (list, tuple))
        for i, t in enumerate(value if many else (value,)):
            if isinstance(t, Tensor) and t.is_nested:
                fail(TypeError, op, f"{arg}[{i}]" if many else arg, "a nested tensor", "a dense strided tensor")


def no_grad_needed(op: str, **tensors: Any) -> None:
    """Ops without a gradient refuse inputs that ask for one, instead of returning a silent dead end."""
    not_nested(op, **tensors)
    if not torch.is_grad_enabled():
        return
    for arg, value in tensors.items():
        for t in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(t, Tensor) and t.requires_grad:
                raise RuntimeError(f"{op}: `{arg}` requires a gradient, which this op does not have, "
                                   "allowed: tensors without requires_grad, or a call under torch.no_grad()")
