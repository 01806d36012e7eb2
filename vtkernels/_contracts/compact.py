"""Contracts of the ops that move tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks as check
from .spec import Spec, with_tokens
from .windows import windows


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
    token_dim = _dense_kv(op, kv, kv_layout)
    kept = _kv_indices(op, indices, kv, 3 - token_dim)
    return [with_tokens(t, token_dim, kept) for t in kv]


def gather_kv_inplace(kv: Sequence[Tensor], indices: Tensor, *, kv_layout: str = "HND") -> None:
    op = "gather_kv_inplace"
    token_dim = _dense_kv(op, kv, kv_layout)
    _written_caches(op, kv)
    kept = _kv_indices(op, indices, kv, 3 - token_dim)
    if kept > kv[0].shape[token_dim]:
        check.fail(ValueError, op, "indices", f"of size {kept} in k", f"at most {kv[0].shape[token_dim]} (N)")


def _dense_kv(op: str, kv: Sequence[Tensor], kv_layout: str) -> int:
    """The token dimension of caches that share their batch and tokens."""
    if not kv:
        check.fail(ValueError, op, "kv", "empty", "at least one tensor")
    token_dim = check.kv_token_dim(op, kv_layout)
    check.dense(op, "kv[0]", kv[0])
    check.rank(op, "kv[0]", kv[0], "B, H, N, d" if kv_layout == "HND" else "B, N, H, d")
    check.kv_caches(op, kv, kv_layout, kv[0].shape[0], kv[0].shape[token_dim], kv[0])
    return token_dim


def _kv_indices(op: str, idx: Tensor, kv: Sequence[Tensor], head_dim: int) -> int:
    """How many tokens stay: the last size of indices [B, k], [B, H, k] or [L, B, H, k]."""
    check.dense(op, "indices", idx)
    if idx.dtype not in check.INDEX_DTYPES:
        check.fail(TypeError, op, "indices", f"a tensor of {check.names([idx.dtype])}", check.names(check.INDEX_DTYPES))
    if idx.dim() not in (2, 3, 4):
        check.fail(ValueError, op, "indices", f"a {idx.dim()}-D tensor of shape {check.shape(idx)}",
                   "[B, k], [B, H, k] or [L, B, H, k]")
    check.same_device(op, "indices", idx, "the input", kv[0])
    if idx.dim() == 4:
        check.size(op, "indices", idx.shape[0], len(kv), "L (tensors)")
    check.size(op, "indices", idx.shape[-3 if idx.dim() > 2 else 0], kv[0].shape[0], "B")
    if idx.dim() > 2:
        for i, t in enumerate(kv):
            if idx.shape[-2] != t.shape[head_dim] and idx.shape[-2] != 1:
                check.fail(ValueError, op, "indices", f"of size {idx.shape[-2]} in H",
                           f"1 or {t.shape[head_dim]} (the heads of kv[{i}])")
    return idx.shape[-1]


def _written_caches(op: str, kv: Sequence[Tensor]) -> None:
    """Caches that can be changed in place."""
    for i, t in enumerate(kv):
        if any(size > 1 and stride == 0 for size, stride in zip(t.shape, t.stride(), strict=True)):
            check.fail(ValueError, op, f"kv[{i}]", "expanded", "a tensor whose elements each have their own memory")
        for j in range(i):
            if kv[j] is t:
                check.fail(ValueError, op, f"kv[{i}]", f"the same tensor as kv[{j}]", "each tensor once")


def rotate_keys(keys: Tensor, deltas: Tensor, inv_freq: Tensor, *, interleaved: bool = False,
                kv_layout: str = "HND") -> Spec:
    op = "rotate_keys"
    check.floating(op, "keys", keys)
    token_dim = check.kv_token_dim(op, kv_layout)
    check.rank(op, "keys", keys, "B, H, N, d" if kv_layout == "HND" else "B, N, H, d")
    check.dense(op, "deltas", deltas)
    if deltas.dtype not in check.INDEX_DTYPES:
        check.fail(TypeError, op, "deltas", f"a tensor of {check.names([deltas.dtype])}",
                   check.names(check.INDEX_DTYPES))
    axes = deltas.dim() == 3
    check.rank(op, "deltas", deltas, "axes, B, N" if axes else "B, N")
    check.size(op, "deltas", deltas.shape[-2], keys.shape[0], "B")
    check.size(op, "deltas", deltas.shape[-1], keys.shape[token_dim], "N")
    check.same_device(op, "deltas", deltas, "keys", keys)
    check.dense(op, "inv_freq", inv_freq)
    if inv_freq.dtype != torch.float32:
        check.fail(TypeError, op, "inv_freq", f"a tensor of {check.names([inv_freq.dtype])}", "float32")
    check.rank(op, "inv_freq", inv_freq, "axes, pairs" if axes else "pairs")
    if axes:
        check.size(op, "inv_freq", inv_freq.shape[0], deltas.shape[0], "axes (those of `deltas`)")
    check.in_range(op, "inv_freq", inv_freq.shape[-1], 0, keys.shape[3] // 2, "pairs, at most d / 2")
    check.same_device(op, "inv_freq", inv_freq, "keys", keys)
    return Spec(tuple(keys.shape), keys.dtype, keys.device)


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


def paged_kv(op: str, kv: Sequence[Tensor], block_table: Tensor, seq_lens: Tensor, dst_block_table: Tensor | None,
             kv_layout: str, allow_shared: bool, batch: int) -> tuple[Spec, Spec]:
    """Pools of pages and their tables. Returns the specs of the new lengths and of the freed blocks."""
    if not kv:
        check.fail(ValueError, op, "kv", "empty", "at least one tensor")
    check.choice(op, "kv_layout", kv_layout, check.KV_LAYOUTS)
    token_dim = 1 if kv_layout == "NHD" else 2
    for i, t in enumerate(kv):
        arg = f"kv[{i}]"
        check.dense(op, arg, t)
        check.rank(op, arg, t, "blocks, block_size, H, d" if kv_layout == "NHD" else "blocks, H, block_size, d")
        check.same_device(op, arg, t, "kv[0]", kv[0])
        check.size(op, arg, t.shape[0], kv[0].shape[0], "blocks")
        check.size(op, arg, t.shape[token_dim], kv[0].shape[token_dim], "block_size")
        if t.shape[token_dim] < 1:
            check.fail(ValueError, op, arg, f"of shape {check.shape(t)}", "a block_size of at least 1")
    _written_caches(op, kv)
    ref = kv[0]
    _table(op, "block_table", block_table, batch, ref)
    check.vector(op, "seq_lens", seq_lens, batch, (torch.int32,), ref, "B")
    if dst_block_table is not None:
        _table(op, "dst_block_table", dst_block_table, batch, ref)
    elif allow_shared:
        check.fail(ValueError, op, "allow_shared", True, "False, unless `dst_block_table` is given")
    return Spec((batch,), torch.int32, ref.device), Spec((batch, block_table.shape[1]), torch.int32, ref.device)


def _table(op: str, arg: str, table: Tensor, batch: int, ref: Tensor) -> None:
    check.dense(op, arg, table)
    if table.dtype != torch.int32:
        check.fail(TypeError, op, arg, f"a tensor of {check.names([table.dtype])}", "int32")
    check.rank(op, arg, table, "B, max_blocks")
    check.size(op, arg, table.shape[0], batch, "B")
    check.same_device(op, arg, table, "kv[0]", ref)


def compact_kv_paged(kv: Sequence[Tensor], block_table: Tensor, seq_lens: Tensor, indices: Tensor, *,
                     counts: Tensor | None = None, dst_block_table: Tensor | None = None, kv_layout: str = "NHD",
                     allow_shared: bool = False) -> tuple[Spec, Spec, Spec]:
    op = "compact_kv_paged"
    check.dense(op, "block_table", block_table)
    check.rank(op, "block_table", block_table, "B, max_blocks")
    batch = block_table.shape[0]
    lengths, freed = paged_kv(op, kv, block_table, seq_lens, dst_block_table, kv_layout, allow_shared, batch)
    check.indices(op, indices, batch, kv[0])
    if counts is not None:
        check.vector(op, "counts", counts, batch, (torch.int32,), kv[0], "B")
    return lengths, Spec(tuple(indices.shape), torch.int64, kv[0].device), freed


def pool_span(tokens: Tensor, window: int, *, window_width: int = 0, grid_width: int = 0, span_start: int = 0,
              span_len: int = -1, ceil: bool = False) -> Spec:
    op = "pool_span"
    check.floating(op, "tokens", tokens)
    check.rank(op, "tokens", tokens, "B, N, D")
    n = tokens.shape[1]
    w = windows(op, tokens, n, window, window_width, grid_width, span_start, span_len, ceil)
    return with_tokens(tokens, 1, n - w.length + w.count)


SHUFFLE_ORDERS = ("window", "window_transposed", "channel")


def _grid(op: str, tokens: Tensor, grid_width: int, factor: int, order: str) -> None:
    check.dense(op, "tokens", tokens)
    check.rank(op, "tokens", tokens, "B, N, D")
    check.in_range(op, "factor", factor, 1, 2**15, "tokens on a side of a window")
    check.in_range(op, "grid_width", grid_width, 1, 2**31 - 1, "tokens in a row of the fine grid")
    check.choice(op, "order", order, SHUFFLE_ORDERS)
    if grid_width % factor != 0:
        check.fail(ValueError, op, "grid_width", grid_width, f"a multiple of factor ({factor})")


def shuffle_tokens(tokens: Tensor, grid_width: int, factor: int = 2, *, order: str = "window") -> Spec:
    op = "shuffle_tokens"
    _grid(op, tokens, grid_width, factor, order)
    batch, n, width = tokens.shape
    if n % (grid_width * factor) != 0:
        check.fail(ValueError, op, "tokens", f"of {n} tokens",
                   f"a multiple of grid_width * factor ({grid_width} * {factor}): whole rows of windows")
    return Spec((batch, n // (factor * factor), width * factor * factor), tokens.dtype, tokens.device)


def unshuffle_tokens(tokens: Tensor, grid_width: int, factor: int = 2, *, order: str = "window") -> Spec:
    op = "unshuffle_tokens"
    _grid(op, tokens, grid_width, factor, order)
    batch, n, width = tokens.shape
    if width % (factor * factor) != 0:
        check.fail(ValueError, op, "tokens", f"of width {width}", f"a multiple of factor * factor ({factor * factor})")
    if n % (grid_width // factor) != 0:
        check.fail(ValueError, op, "tokens", f"of {n} tokens",
                   f"a multiple of grid_width / factor ({grid_width // factor}): whole rows of windows")
    return Spec((batch, n * factor * factor, width // (factor * factor)), tokens.dtype, tokens.device)


QUANTIZED_BITS = (2, 4, 8)


def _classes(op: str, indices: Sequence[Tensor], bits: Sequence[int], ref: Tensor, batch: int) -> None:
    """A list of tokens and a number of bits for each importance class."""
    if not indices:
        check.fail(ValueError, op, "indices", "empty", "at least one class of tokens")
    check.size(op, "bits", len(bits), len(indices), "entries (one for each class)")
    for c, (chosen, width) in enumerate(zip(indices, bits, strict=True)):
        arg = f"indices[{c}]"
        check.dense(op, arg, chosen)
        if chosen.dtype not in check.INDEX_DTYPES:
            check.fail(TypeError, op, arg, f"a tensor of {check.names([chosen.dtype])}",
                       check.names(check.INDEX_DTYPES))
        check.rank(op, arg, chosen, "B, k")
        check.size(op, arg, chosen.shape[0], batch, "B")
        check.same_device(op, arg, chosen, "the input", ref)
        if width not in QUANTIZED_BITS:
            check.fail(ValueError, op, f"bits[{c}]", width, "2, 4 or 8")


def _quantized(batch: int, heads: int, count: int, width: int, bits: int, device: torch.device) -> tuple[Spec, ...]:
    """Codes of keys, ranges of their channels, codes of values, ranges of their tokens, scales of their channels."""
    codes = Spec((batch, heads, count, (width * bits + 7) // 8), torch.uint8, device)
    return (codes, Spec((batch, heads, 2, width), torch.float32, device),
            codes, Spec((batch, heads, count, 2), torch.float32, device),
            Spec((batch, heads, width), torch.float32, device))


def quantize_kv(key: Tensor, value: Tensor, indices: Sequence[Tensor], bits: Sequence[int]) -> tuple[list[Spec], ...]:
    op = "quantize_kv"
    for arg, cache in (("key", key), ("value", value)):
        check.floating(op, arg, cache)
        check.rank(op, arg, cache, "B, H, N, d")
    if value.dtype != key.dtype:
        check.fail(TypeError, op, "value", f"a tensor of {check.names([value.dtype])}",
                   f"the dtype of `key` ({check.names([key.dtype])})")
    check.same_device(op, "value", value, "key", key)
    if tuple(value.shape) != tuple(key.shape):
        check.fail(ValueError, op, "value", f"of shape {check.shape(value)}", f"that of `key`, {check.shape(key)}")
    batch, heads, _, width = key.shape
    _classes(op, indices, bits, key, batch)
    each = [_quantized(batch, heads, i.shape[1], width, b, key.device) for i, b in zip(indices, bits, strict=True)]
    return tuple(list(outputs) for outputs in zip(*each, strict=True))


def dequantize_kv(key_codes: Sequence[Tensor], key_params: Sequence[Tensor], value_codes: Sequence[Tensor],
                  value_params: Sequence[Tensor], value_scales: Sequence[Tensor], indices: Sequence[Tensor],
                  bits: Sequence[int], tokens: int, *, dtype: torch.dtype) -> tuple[Spec, Spec]:
    op = "dequantize_kv"
    if not value_scales:
        check.fail(ValueError, op, "value_scales", "empty", "at least one class of tokens")
    first = value_scales[0]
    check.dense(op, "value_scales[0]", first)
    check.rank(op, "value_scales[0]", first, "B, H, d")
    batch, heads, width = first.shape
    _classes(op, indices, bits, first, batch)
    given = {"key_codes": key_codes, "key_params": key_params, "value_codes": value_codes,
             "value_params": value_params, "value_scales": value_scales}
    for arg, entries in given.items():
        check.size(op, arg, len(entries), len(indices), "entries (one for each class)")
    for c, (chosen, each) in enumerate(zip(indices, bits, strict=True)):
        like = _quantized(batch, heads, chosen.shape[1], width, each, first.device)
        for (arg, entries), spec in zip(given.items(), like, strict=True):
            _like(op, f"{arg}[{c}]", entries[c], spec, first)
    check.in_range(op, "tokens", tokens, 0, 2**31 - 1, "rows of the caches")
    if dtype not in check.FLOATS:
        check.fail(TypeError, op, "dtype", check.names([dtype]), check.names(check.FLOATS))
    cache = Spec((batch, heads, tokens, width), dtype, first.device)
    return cache, cache


def _like(op: str, arg: str, t: Tensor, spec: Spec, ref: Tensor) -> None:
    check.dense(op, arg, t)
    if t.dtype != spec.dtype:
        check.fail(TypeError, op, arg, f"a tensor of {check.names([t.dtype])}", check.names([spec.dtype]))
    if tuple(t.shape) != tuple(spec.shape):
        check.fail(ValueError, op, arg, f"of shape {check.shape(t)}",
                   f"{tuple(spec.shape)}, as the other arguments say")
    check.same_device(op, arg, t, "value_scales[0]", ref)
