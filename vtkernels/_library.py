"""The contract: the schema of every op, the checks of its arguments, and the specs of its outputs.

One function per op checks the arguments (metadata only) and returns what comes out as `Spec`s. The fake implementation
that the compiler sees allocates from these specs, and so does every backend written in Python, so the two cannot drift
apart. Outputs are contiguous. The `.out` variants write into buffers of the caller.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _checks as check

NAMESPACE = "vtkernels"

# torch's schema language has no default for a list of tensors, so "no caches" is None.
_PRUNE = "Tensor hidden, Tensor prototypes, SymInt k, Tensor[]? kv=None, *, bool keep_similar=False, " \
         "SymInt span_start=0, SymInt span_len=-1, Tensor? span_starts=None, " \
         "Tensor? prototype_rnorm=None, str kv_layout='HND'"
_PRUNE_VARLEN = "Tensor hidden, Tensor prototypes, Tensor cu_seqlens, Tensor k, SymInt total_out, " \
                "Tensor[]? kv=None, *, bool keep_similar=False, Tensor? span_starts=None, Tensor? span_lens=None, " \
                "Tensor? prototype_rnorm=None, str kv_layout='HND'"
_SCORES = "Tensor tokens, Tensor prototypes, *, str metric='cosine', Tensor? prototype_rnorm=None"
_TOPK = "Tensor scores, SymInt k, *, bool largest=True"
_TOKENS = "Tensor[] tensors, Tensor indices, *, int[]? token_dims=None"
_KV = "Tensor[] kv, Tensor indices, *, str kv_layout='HND'"

SCHEMAS = {
    "prototype_scores": f"({_SCORES}) -> (Tensor scores, Tensor argmax)",
    "prototype_scores.out": f"({_SCORES}, Tensor(a!) scores, Tensor(b!) argmax) -> ()",
    "select_topk": f"({_TOPK}) -> Tensor",
    "select_topk.out": f"({_TOPK}, Tensor(a!) out) -> ()",
    "gather_tokens": f"({_TOKENS}) -> Tensor[]",
    "gather_tokens.out": f"({_TOKENS}, Tensor(a!)[] out, Tensor(b!)? status=None) -> ()",
    "gather_kv": f"({_KV}) -> Tensor[]",
    "gather_kv.out": f"({_KV}, Tensor(a!)[] out, Tensor(b!)? status=None) -> ()",
    "prune_topk": f"({_PRUNE}) -> (Tensor hidden, Tensor[] kv, Tensor indices, Tensor scores)",
    "prune_topk.out": f"({_PRUNE}, Tensor(a!) out_hidden, Tensor(b!)[] out_kv, Tensor(c!) out_indices, "
                      "Tensor(d!) out_scores, Tensor(e!)? workspace=None, Tensor(f!)? status=None) -> ()",
    "prune_topk_varlen": f"({_PRUNE_VARLEN}) -> "
                         "(Tensor hidden, Tensor[] kv, Tensor indices, Tensor scores, Tensor cu_seqlens)",
    "prune_topk_varlen.out": f"({_PRUNE_VARLEN}, Tensor(a!) out_hidden, Tensor(b!)[] out_kv, Tensor(c!) out_indices, "
                             "Tensor(d!) out_scores, Tensor(e!) out_cu_seqlens, Tensor(f!)? workspace=None, "
                             "Tensor(g!)? status=None) -> ()",
}

# The outputs of each op, by their names in the `.out` variant.
OUT_ARGS = {
    "prototype_scores": ("scores", "argmax"),
    "select_topk": ("out",),
    "gather_tokens": ("out",),
    "gather_kv": ("out",),
    "prune_topk": ("out_hidden", "out_kv", "out_indices", "out_scores"),
    "prune_topk_varlen": ("out_hidden", "out_kv", "out_indices", "out_scores", "out_cu_seqlens"),
}

# Bits that an op with a `status` word (int32 [1]) ORs into it when device-side metadata was out of range.
STATUS_BAD_INDEX = 1      # an index outside its row: that output row is zero-filled
STATUS_BAD_SPAN = 2       # a span outside its row or a k outside the span: clamped
STATUS_BAD_SEQLENS = 4    # cu_seqlens not starting at 0, decreasing, or past T: clamped
STATUS_TRUNCATED = 8      # more tokens kept than `total_out` holds: the rest is dropped

METRICS = ("cosine", "dot")


class Spec(NamedTuple):
    """An output before it exists."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def allocate(spec: Any) -> Any:
    """Contiguous, uninitialised tensors for a spec, or for a tuple or list of specs."""
    if isinstance(spec, Spec):
        return torch.empty(spec.shape, dtype=spec.dtype, device=spec.device)
    return type(spec)(allocate(s) for s in spec)


def prototype_scores(tokens: Tensor, prototypes: Tensor, *, metric: str = "cosine",
                     prototype_rnorm: Tensor | None = None) -> tuple[Spec, Spec]:
    op = "prototype_scores"
    check.floating(op, "tokens", tokens)
    if tokens.dim() not in (2, 3):
        check.fail(ValueError, op, "tokens", f"a {tokens.dim()}-D tensor of shape {check.shape(tokens)}",
                   "[B, N, D] or [T, D]")
    check.choice(op, "metric", metric, METRICS)
    if metric == "dot" and prototype_rnorm is not None:
        check.fail(ValueError, op, "prototype_rnorm", "given", "None with metric='dot'")
    check.prototypes(op, prototypes, prototype_rnorm, tokens, "tokens")
    shape = tuple(tokens.shape[:-1])
    return Spec(shape, torch.float32, tokens.device), Spec(shape, torch.int64, tokens.device)


def prototype_scores_out(tokens: Tensor, prototypes: Tensor, *, metric: str = "cosine",
                         prototype_rnorm: Tensor | None = None, scores: Tensor, argmax: Tensor) -> None:
    like = prototype_scores(tokens, prototypes, metric=metric, prototype_rnorm=prototype_rnorm)
    check.output("prototype_scores.out", "scores", scores, like[0])
    check.output("prototype_scores.out", "argmax", argmax, like[1], check.INDEX_DTYPES)


def select_topk(scores: Tensor, k: int, *, largest: bool = True) -> Spec:
    op = "select_topk"
    check.dense(op, "scores", scores)
    if scores.dtype != torch.float32:
        check.fail(TypeError, op, "scores", f"a tensor of {check.names([scores.dtype])}", "float32")
    check.rank(op, "scores", scores, "B, N")
    check.in_range(op, "k", k, 0, scores.shape[1], "the row has N scores")
    return Spec((scores.shape[0], k), torch.int64, scores.device)


def select_topk_out(scores: Tensor, k: int, *, largest: bool = True, out: Tensor) -> None:
    check.output("select_topk.out", "out", out, select_topk(scores, k, largest=largest), check.INDEX_DTYPES)


def gather_tokens(tensors: Sequence[Tensor], indices: Tensor, *,
                  token_dims: Sequence[int] | None = None) -> list[Spec]:
    op = "gather_tokens"
    if not tensors:
        check.fail(ValueError, op, "tensors", "empty", "at least one tensor")
    dims = [1] * len(tensors) if token_dims is None else list(token_dims)
    check.size(op, "token_dims", len(dims), len(tensors), "entries (one for each tensor)")
    check.dense(op, "tensors[0]", tensors[0])
    outs = []
    for i, (t, dim) in enumerate(zip(tensors, dims, strict=True)):
        arg = f"tensors[{i}]"
        check.dense(op, arg, t)
        if not 1 <= dim < t.dim():
            check.fail(ValueError, op, f"token_dims[{i}]", dim,
                       f"1 to {t.dim() - 1} (batch is the dimension before it)")
        check.same_device(op, arg, t, "tensors[0]", tensors[0])
        check.size(op, arg, t.shape[dim - 1], tensors[0].shape[dims[0] - 1], "B")
        check.size(op, arg, t.shape[dim], tensors[0].shape[dims[0]], "tokens")
        if i == 0:
            check.indices(op, indices, t.shape[dim - 1], t)
        outs.append(_with_tokens(t, dim, indices.shape[1]))
    return outs


def gather_tokens_out(tensors: Sequence[Tensor], indices: Tensor, *, token_dims: Sequence[int] | None = None,
                      out: Sequence[Tensor], status: Tensor | None = None) -> None:
    _check_list("gather_tokens.out", "out", out, gather_tokens(tensors, indices, token_dims=token_dims))
    check.status_word("gather_tokens.out", status, indices)


def gather_kv(kv: Sequence[Tensor], indices: Tensor, *, kv_layout: str = "HND") -> list[Spec]:
    op = "gather_kv"
    if not kv:
        check.fail(ValueError, op, "kv", "empty", "at least one tensor")
    token_dim = check.kv_token_dim(op, kv_layout)
    check.dense(op, "kv[0]", kv[0])
    check.rank(op, "kv[0]", kv[0], "B, H, N, d" if kv_layout == "HND" else "B, N, H, d")
    caches = check.kv_caches(op, kv, kv_layout, kv[0].shape[0], kv[0].shape[token_dim], kv[0])
    check.indices(op, indices, kv[0].shape[0], kv[0])
    return [_with_tokens(t, token_dim, indices.shape[1]) for t in caches]


def gather_kv_out(kv: Sequence[Tensor], indices: Tensor, *, kv_layout: str = "HND", out: Sequence[Tensor],
                  status: Tensor | None = None) -> None:
    _check_list("gather_kv.out", "out", out, gather_kv(kv, indices, kv_layout=kv_layout))
    check.status_word("gather_kv.out", status, indices)


def prune_topk(hidden: Tensor, prototypes: Tensor, k: int, kv: Sequence[Tensor] | None = None, *,
               keep_similar: bool = False, span_start: int = 0, span_len: int = -1,
               span_starts: Tensor | None = None, prototype_rnorm: Tensor | None = None,
               kv_layout: str = "HND") -> tuple[Spec, list[Spec], Spec, Spec]:
    op = "prune_topk"
    check.floating(op, "hidden", hidden)
    check.rank(op, "hidden", hidden, "B, N, D")
    check.prototypes(op, prototypes, prototype_rnorm, hidden, "hidden")
    b, n, d = hidden.shape
    length = check.span(op, n, span_start, span_len, span_starts, b, hidden)
    check.in_range(op, "k", k, 0, length, "the length of the span")
    caches = check.kv_caches(op, kv, kv_layout, b, n, hidden)
    kept = n - length + k
    token_dim = check.kv_token_dim(op, kv_layout)
    return (Spec((b, kept, d), hidden.dtype, hidden.device), [_with_tokens(t, token_dim, kept) for t in caches],
            Spec((b, kept), torch.int64, hidden.device), Spec((b, length), torch.float32, hidden.device))


def prune_topk_out(hidden: Tensor, prototypes: Tensor, k: int, kv: Sequence[Tensor] | None = None, *,
                   keep_similar: bool = False, span_start: int = 0, span_len: int = -1,
                   span_starts: Tensor | None = None, prototype_rnorm: Tensor | None = None, kv_layout: str = "HND",
                   out_hidden: Tensor, out_kv: Sequence[Tensor], out_indices: Tensor, out_scores: Tensor,
                   workspace: Tensor | None = None, status: Tensor | None = None) -> None:
    op = "prune_topk.out"
    like = prune_topk(hidden, prototypes, k, kv, keep_similar=keep_similar, span_start=span_start,
                 span_len=span_len, span_starts=span_starts, prototype_rnorm=prototype_rnorm, kv_layout=kv_layout)
    _check_prune_outputs(op, like, out_hidden, out_kv, out_indices, out_scores)
    _check_workspace(op, workspace, status, hidden, hidden.shape[0])


def prune_topk_varlen(hidden: Tensor, prototypes: Tensor, cu_seqlens: Tensor, k: Tensor, total_out: int,
                      kv: Sequence[Tensor] | None = None, *, keep_similar: bool = False,
                      span_starts: Tensor | None = None, span_lens: Tensor | None = None,
                      prototype_rnorm: Tensor | None = None,
                      kv_layout: str = "HND") -> tuple[Spec, list[Spec], Spec, Spec, Spec]:
    op = "prune_topk_varlen"
    check.floating(op, "hidden", hidden)
    check.rank(op, "hidden", hidden, "T, D")
    check.prototypes(op, prototypes, prototype_rnorm, hidden, "hidden")
    check.dense(op, "k", k)
    check.rank(op, "k", k, "B")
    b = k.shape[0]
    check.vector(op, "k", k, b, (torch.int32,), hidden, "B")
    check.vector(op, "cu_seqlens", cu_seqlens, b + 1, (torch.int32,), hidden, "B + 1")
    if (span_starts is None) != (span_lens is None):
        check.fail(ValueError, op, "span_starts, span_lens", "only one of them", "both, or neither (whole sequences)")
    if span_starts is not None:
        check.vector(op, "span_starts", span_starts, b, (torch.int32,), hidden, "B")
        check.vector(op, "span_lens", span_lens, b, (torch.int32,), hidden, "B")
    total = hidden.shape[0]
    check.in_range(op, "total_out", total_out, 0, total, "at most the T packed tokens")
    caches = check.kv_caches(op, kv, kv_layout, 1, total, hidden, packed=True)
    token_dim = check.kv_token_dim(op, kv_layout, packed=True)
    dev = hidden.device
    return (Spec((total_out, hidden.shape[1]), hidden.dtype, dev),
            [_with_tokens(t, token_dim, total_out) for t in caches],
            Spec((total_out,), torch.int64, dev), Spec((total,), torch.float32, dev), Spec((b + 1,), torch.int32, dev))


def prune_topk_varlen_out(hidden: Tensor, prototypes: Tensor, cu_seqlens: Tensor, k: Tensor, total_out: int,
                          kv: Sequence[Tensor] | None = None, *, keep_similar: bool = False,
                          span_starts: Tensor | None = None, span_lens: Tensor | None = None,
                          prototype_rnorm: Tensor | None = None, kv_layout: str = "HND", out_hidden: Tensor,
                          out_kv: Sequence[Tensor], out_indices: Tensor, out_scores: Tensor, out_cu_seqlens: Tensor,
                          workspace: Tensor | None = None, status: Tensor | None = None) -> None:
    op = "prune_topk_varlen.out"
    like = prune_topk_varlen(hidden, prototypes, cu_seqlens, k, total_out, kv, keep_similar=keep_similar,
                 span_starts=span_starts, span_lens=span_lens, prototype_rnorm=prototype_rnorm, kv_layout=kv_layout)
    _check_prune_outputs(op, like, out_hidden, out_kv, out_indices, out_scores)
    check.output(op, "out_cu_seqlens", out_cu_seqlens, like[4])
    _check_workspace(op, workspace, status, hidden, k.shape[0])


def workspace_size(batch: int) -> int:
    """int32 words that `prune_topk.out` and `prune_topk_varlen.out` want for `batch` rows."""
    return 64 + 8 * batch


def _with_tokens(t: Tensor, token_dim: int, tokens: Any) -> Spec:
    return Spec((*t.shape[:token_dim], tokens, *t.shape[token_dim + 1:]), t.dtype, t.device)


def _check_list(op: str, arg: str, outs: Sequence[Tensor], like: Sequence[Spec]) -> None:
    check.size(op, arg, len(outs), len(like), "tensors (one for each input)")
    for i, (o, expected) in enumerate(zip(outs, like, strict=True)):
        check.output(op, f"{arg}[{i}]", o, expected)


def _check_prune_outputs(op: str, like: Any, hidden: Tensor, kv: Sequence[Tensor], indices: Tensor,
                         scores: Tensor) -> None:
    check.output(op, "out_hidden", hidden, like[0])
    _check_list(op, "out_kv", kv, like[1])
    check.output(op, "out_indices", indices, like[2], check.INDEX_DTYPES)
    check.output(op, "out_scores", scores, like[3])


def _check_workspace(op: str, workspace: Tensor | None, status: Tensor | None, ref: Tensor, batch: Any) -> None:
    check.status_word(op, status, ref)
    if workspace is not None:
        check.dense(op, "workspace", workspace)
        if workspace.dtype != torch.int32 or workspace.dim() != 1 or workspace.shape[0] < workspace_size(batch):
            got = f"{check.names([workspace.dtype])} of shape {check.shape(workspace)}"
            check.fail(ValueError, op, "workspace", got,
                       f"a zeroed int32 vector of at least {workspace_size(batch)} words")
        check.same_device(op, "workspace", workspace, "the input", ref)


LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
# The CUDA C++ kernels stand in a namespace of their own: one launcher per public op chooses between them and Triton.
CUDA_NAMESPACE = f"{NAMESPACE}_cuda"
CUDA_LIBRARY = torch.library.Library(CUDA_NAMESPACE, "FRAGMENT")
CONTRACTS = {name: globals()[name.replace(".", "_")] for name in SCHEMAS}


def _fake(name: str) -> Any:
    contract = CONTRACTS[name]
    if name.endswith(".out"):
        return contract
    return lambda *args, **kwargs: allocate(contract(*args, **kwargs))


for _name, _schema in SCHEMAS.items():
    LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake(_name), lib=LIBRARY)
    if _name.endswith(".out"):
        CUDA_LIBRARY.define(_name + _schema)
