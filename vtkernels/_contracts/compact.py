"""Contracts of the ops that move tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks as check
from .spec import Spec, with_tokens


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
        outs.append(with_tokens(t, dim, indices.shape[1]))
    return outs


def gather_kv(kv: Sequence[Tensor], indices: Tensor, *, kv_layout: str = "HND") -> list[Spec]:
    op = "gather_kv"
    if not kv:
        check.fail(ValueError, op, "kv", "empty", "at least one tensor")
    token_dim = check.kv_token_dim(op, kv_layout)
    check.dense(op, "kv[0]", kv[0])
    check.rank(op, "kv[0]", kv[0], "B, H, N, d" if kv_layout == "HND" else "B, N, H, d")
    caches = check.kv_caches(op, kv, kv_layout, kv[0].shape[0], kv[0].shape[token_dim], kv[0])
    check.indices(op, indices, kv[0].shape[0], kv[0])
    return [with_tokens(t, token_dim, indices.shape[1]) for t in caches]


REDUCTIONS = ("mean", "sum")


def merge_tokens(tokens: Tensor, assignment: Tensor, groups: int, *, weights: Tensor | None = None,
                 reduce: str = "mean") -> tuple[Spec, Spec]:
    op = "merge_tokens"
    check.floating(op, "tokens", tokens)
    check.rank(op, "tokens", tokens, "B, N, D")
    batch, n, d = tokens.shape
    check.dense(op, "assignment", assignment)
    if assignment.dtype not in check.INDEX_DTYPES:
        check.fail(TypeError, op, "assignment", f"a tensor of {check.names([assignment.dtype])}",
                   check.names(check.INDEX_DTYPES))
    check.rank(op, "assignment", assignment, "B, N")
    check.size(op, "assignment", assignment.shape[0], batch, "B")
    check.size(op, "assignment", assignment.shape[1], n, "N")
    check.same_device(op, "assignment", assignment, "tokens", tokens)
    check.in_range(op, "groups", groups, 0, 2**31 - 1, "rows of the output")
    if weights is not None:
        check.dense(op, "weights", weights)
        if weights.dtype != torch.float32:
            check.fail(TypeError, op, "weights", f"a tensor of {check.names([weights.dtype])}", "float32")
        if tuple(weights.shape) != (batch, n):
            check.fail(ValueError, op, "weights", f"of shape {check.shape(weights)}", f"[B, N], here {(batch, n)}")
        check.same_device(op, "weights", weights, "tokens", tokens)
    check.choice(op, "reduce", reduce, REDUCTIONS)
    return Spec((batch, groups, d), tokens.dtype, tokens.device), Spec((batch, groups), torch.float32, tokens.device)
