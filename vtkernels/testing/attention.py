"""attention_scores and attention_scores_varlen: float64 attention, row by row, hostile samples."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Sample, padded, rand, run

EPS = float(np.finfo(np.float32).eps)


def _pool(values: np.ndarray, seen: np.ndarray, weights: np.ndarray, rows: str) -> np.ndarray:
    """[T, S] of one head -> [S]."""
    out = np.zeros(values.shape[1])
    for j in range(values.shape[1]):
        used = seen[:, j] & (weights != 0)
        terms = weights[used] * values[used, j]
        if rows == "max":
            out[j] = terms.max() if terms.size else 0.0  # NumPy's max propagates NaN
        else:
            out[j] = terms.sum()
    if rows == "mean":
        total = weights.sum()
        out = np.zeros_like(out) if total == 0 else out / total
    return out


def _softmax(logits: np.ndarray, seen: np.ndarray) -> np.ndarray:
    out = np.zeros_like(logits)
    for i in range(logits.shape[0]):
        row = logits[i, seen[i]]
        if row.size:
            e = np.exp(row - row.max())
            out[i, seen[i]] = e / e.sum()
    return out


def _one_sequence(q: np.ndarray, k: np.ndarray, seen: np.ndarray, lse: np.ndarray | None, weights: np.ndarray,
                  scale: float | None, rows: str, heads: str, logits: bool) -> tuple[np.ndarray, float]:
    """[Hq, T, d] with [Hkv, S, d] in float64 -> scores, and the largest finite logit."""
    results, largest = [], 0.0
    with np.errstate(all="ignore"):
        for h in range(q.shape[0]):
            x = q[h] @ k[h // (q.shape[0] // k.shape[0])].T * (q.shape[-1] ** -0.5 if scale is None else scale)
            finite = np.abs(x[np.isfinite(x) & seen])
            largest = max(largest, float(finite.max()) if finite.size else 0.0)
            if lse is not None:
                x = np.exp(x - lse[h][:, None])
            elif not logits:
                x = _softmax(x, seen)
            results.append(_pool(x, seen, weights, rows))
        stacked = np.stack(results)
        reduced = {"none": stacked, "sum": stacked.sum(0), "mean": stacked.mean(0), "max": stacked.max(0)}[heads]
    return reduced, largest


def oracle_attention(query: Tensor, key: Tensor, *, lse: Tensor | None = None, row_weights: Tensor | None = None,
                     scale: float | None = None, causal: bool = False, causal_offset: int | None = None,
                     key_start: int = 0, key_len: int = -1, reduce_rows: str = "mean", reduce_heads: str = "mean",
                     logits: bool = False, layout: str = "HND") -> tuple[np.ndarray, float]:
    """The scores in float64, and the largest finite logit, which says how exact float32 can be."""
    q, k = (t.detach().double().cpu().numpy() for t in (query, key))
    if layout == "NHD":
        q, k = q.swapaxes(1, 2), k.swapaxes(1, 2)
    rows, keys = q.shape[2], k.shape[2]
    offset = keys - rows if causal_offset is None else causal_offset
    seen = np.array([[not causal or j <= offset + i for j in range(keys)] for i in range(rows)], bool)
    seen = seen.reshape(rows, keys)
    end = keys if key_len == -1 else key_start + key_len
    results, largest = [], 0.0
    for b in range(q.shape[0]):
        given = None if lse is None else lse[b].double().cpu().numpy()
        weights = np.ones(rows) if row_weights is None else row_weights[b].double().cpu().numpy()
        one, most = _one_sequence(q[b], k[b], seen, given, weights, scale, reduce_rows, reduce_heads, logits)
        results.append(one[..., key_start:end])
        largest = max(largest, most)
    shape = (0, q.shape[1], end - key_start) if reduce_heads == "none" else (0, end - key_start)
    return np.stack(results) if results else np.zeros(shape), largest


def oracle_attention_varlen(query: Tensor, key: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, total_k: int,
                            max_seqlen_q: int, max_seqlen_k: int, *, block_table: Tensor | None = None,
                            lse: Tensor | None = None, row_weights: Tensor | None = None, scale: float | None = None,
                            causal: bool = False, reduce_rows: str = "mean", reduce_heads: str = "mean",
                            logits: bool = False, kv_layout: str = "NHD") -> tuple[np.ndarray, float, int]:
    """The scores in float64, the largest finite logit, and the status bits."""
    q, k = (t.detach().double().cpu().numpy() for t in (query, key))
    if kv_layout == "HND":
        k = k.swapaxes(-3, -2)
    out = np.full((q.shape[1], total_k) if reduce_heads == "none" else (total_k,), np.nan)
    status, largest = 0, 0.0
    spans = []
    for given, limit, most in ((cu_seqlens_q, q.shape[0], max_seqlen_q), (cu_seqlens_k, total_k, max_seqlen_k)):
        last = 0
        bounds = []
        for i, value in enumerate(given.tolist()):
            last = max(last, min(max(value, 0), limit))
            bounds.append(last)
            if last != value or (i == 0 and value != 0):
                status |= 4
        lengths = [b - a for a, b in itertools.pairwise(bounds)]
        status |= 4 * any(n > most for n in lengths)
        spans.append([(a, min(n, most)) for a, n in zip(bounds, lengths, strict=False)])
    for i, ((first, rows), (begin, keys)) in enumerate(zip(*spans, strict=True)):
        seq, valid = np.zeros((keys, *k.shape[-2:])), np.ones(keys, bool)
        for p in range(keys):
            if block_table is None:
                seq[p] = k[begin + p]
                continue
            column = p // k.shape[1]
            block = int(block_table[i, column]) if column < block_table.shape[1] else -1
            valid[p] = 0 <= block < k.shape[0]
            if valid[p]:
                seq[p] = k[block, p % k.shape[1]]
        status |= int(not valid.all())
        seen = np.array([[valid[j] and (not causal or j <= keys - rows + r) for j in range(keys)]
                         for r in range(rows)], bool).reshape(rows, keys)
        given_lse = None if lse is None else lse[:, first:first + rows].double().cpu().numpy()
        weights = np.ones(rows) if row_weights is None else row_weights[first:first + rows].double().cpu().numpy()
        one, peak = _one_sequence(q[first:first + rows].swapaxes(0, 1), seq.swapaxes(0, 1), seen, given_lse, weights,
                                  scale, reduce_rows, reduce_heads, logits)
        out[..., begin:begin + keys] = one
        largest = max(largest, peak)
    return out, largest, status


def assert_attention(got: Tensor, gold: np.ndarray, largest_logit: float, plain: Tensor) -> None:
    """No worse than plain float32 torch (`plain`, the reference) against float64; NaN and infinities as the oracle."""
    ours, theirs = (t.detach().double().cpu().numpy() for t in (got, plain))
    assert ours.shape == gold.shape, (ours.shape, gold.shape)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(gold))
    ok = np.isfinite(gold)
    np.testing.assert_array_equal(ours[~ok], gold[~ok])
    assert not (np.signbit(ours) & (ours == 0)).any(), "a score is -0"
    if ok.any():
        # A logit of size L is known to L * eps in float32, and so is, relatively, its exponential.
        floor = EPS * (4 + largest_logit) * float(np.abs(gold[ok]).max())
        allowed = max(float(np.abs(theirs[ok] - gold[ok]).max()), floor)
        worst = float(np.abs(ours[ok] - gold[ok]).max())
        assert worst <= 2 * allowed, f"score error {worst:.3g}, plain float32 torch has {allowed:.3g}"


def assert_attention_scores(got: Tensor, *args: Any, **kwargs: Any) -> None:
    """The output of `attention_scores` for a call; the reference is plain float32 torch."""
    assert_attention(got, *oracle_attention(*args, **kwargs), run("attention_scores", "reference", *args, **kwargs))


def assert_attention_scores_varlen(got: Tensor, *args: Any, **kwargs: Any) -> None:
    gold, largest, _ = oracle_attention_varlen(*args, **kwargs)
    assert_attention(got, gold, largest, run("attention_scores_varlen", "reference", *args, **kwargs))


def _lse(query: Tensor, key: Tensor, causal: bool = False) -> Tensor:
    """[.., Hq, T] as FlashAttention would return it for [.., Hq, T, d], [.., Hkv, S, d]."""
    key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    logits = query.float() @ key.float().mT * query.shape[-1] ** -0.5
    rows, keys = logits.shape[-2:]
    if causal:
        seen = torch.arange(keys) <= keys - rows + torch.arange(rows)[:, None]
        logits = logits.masked_fill(~seen, -torch.inf)
    return logits.logsumexp(-1)


def _hostile(d: int, keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows and keys with NaN, infinities, zeros, tiny and large norms among normal ones; [1, 2, 9, d], [1, 1, S, d]."""
    q, k = rand(1, 2, 9, d), rand(1, 1, keys, d, seed=1)
    q[0, 0, 1, 0] = torch.nan
    q[0, 1, 2, 0] = torch.inf
    q[0, :, 3] = 0.0
    q[0, :, 4] *= 1e-20
    q[0, :, 5] *= 30
    q[0, :, 6] = q[0, :, 7]
    k[0, 0, 5] = 0.0
    k[0, 0, 6] = -0.0
    k[0, 0, 7] = k[0, 0, 8]
    k[0, 0, 9] *= 20
    return q.to(dtype), k.to(dtype)


def attention_samples(dtypes: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16)
                      ) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")

        def pair(b: int, h: int, hkv: int, rows: int, keys: int, d: int, dtype: torch.dtype = dtype) -> tuple:
            return rand(b, h, rows, d, dtype=dtype), rand(b, hkv, keys, d, dtype=dtype, seed=1)

        q, k = pair(2, 4, 2, 5, 37, 16)
        yield Sample(f"{tag}-plain", (q, k), {})
        for rows in ("mean", "sum", "max"):
            for heads in ("mean", "sum", "max", "none"):
                if dtype == torch.float32 or (rows, heads) in (("max", "none"), ("sum", "max")):
                    yield Sample(f"{tag}-{rows}-{heads}", (q, k), {"reduce_rows": rows, "reduce_heads": heads,
                                                                    "causal": heads in ("max", "none")})
        yield Sample(f"{tag}-many", pair(1, 3, 1, 70, 200, 33), {})
        yield Sample(f"{tag}-many-none", pair(1, 3, 1, 70, 200, 33), {"reduce_heads": "none", "causal": True})
        yield Sample(f"{tag}-last-row", pair(2, 6, 6, 1, 90, 8), {"causal": True, "key_start": 3, "key_len": 85})
        yield Sample(f"{tag}-lse", (q, k), {"lse": _lse(q, k)})
        yield Sample(f"{tag}-lse-causal-max", (q, k), {
            "lse": _lse(q, k, True), "causal": True, "reduce_rows": "max", "reduce_heads": "max", "key_start": 30})
        yield Sample(f"{tag}-logits", (q, k), {"logits": True})
        yield Sample(f"{tag}-logits-causal-max", (q, k), {"logits": True, "causal": True, "causal_offset": 10,
                                                          "reduce_rows": "max", "reduce_heads": "none"})
        weights = torch.tensor([[0.5, 0.0, 2.0, -1.0, 0.25], [0.0, 0.0, 0.0, 0.0, 0.0]])
        spoiled = q.clone()
        spoiled[:, :, 1] = torch.nan
        spoiled[1] = torch.nan
        for rows, heads in (("mean", "mean"), ("sum", "none"), ("max", "max")):
            yield Sample(f"{tag}-weights-{rows}", (spoiled, k), {"row_weights": weights, "reduce_rows": rows,
                                                                 "reduce_heads": heads, "causal": rows == "max"})
        hostile_q, hostile_k = _hostile(24, 95, dtype)
        yield Sample(f"{tag}-hostile", (hostile_q, hostile_k), {"reduce_heads": "none", "reduce_rows": "sum"})
        yield Sample(f"{tag}-nhd-strided", (rand(1, 8, 4, 50, dtype=dtype)[:, ::2, :, 1:34:2],
                                            rand(1, 90, 2, 34, dtype=dtype, seed=1)[:, ::2, :, ::2]),
                     {"layout": "NHD"})
        if dtype != torch.float32:
            continue
        bad_keys = hostile_k.clone()
        bad_keys[0, 0, 2, 3] = torch.nan
        bad_keys[0, 0, 90] = torch.inf
        for offset in (0, 84):  # rows that see no bad key, one, and two
            yield Sample(f"bad-keys-{offset}", (rand(1, 2, 9, 24), bad_keys), {
                "causal": True, "causal_offset": offset, "reduce_rows": "max", "reduce_heads": "none"})
            yield Sample(f"bad-keys-{offset}-mean", (rand(1, 2, 9, 24), bad_keys), {
                "causal": True, "causal_offset": offset})
        yield Sample("bad-keys-lse", (rand(1, 2, 9, 24), bad_keys), {"lse": rand(1, 2, 9, seed=4).abs() + 4})
        yield Sample("bad-keys-logits", (rand(1, 2, 9, 24), bad_keys), {"logits": True, "reduce_heads": "max"})
        lse = _lse(q, k)
        lse[0, 0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 80.0])
        yield Sample("bad-lse", (q, k), {"lse": lse, "reduce_rows": "max", "reduce_heads": "none"})
        minus = torch.full((1, 1, 30, 4), 1.0)
        minus[0, 0, :20] = -torch.inf
        yield Sample("minus-infinity", (torch.ones(1, 1, 12, 4), minus), {
            "causal": True, "causal_offset": 12, "reduce_rows": "max"})
        yield Sample("nan-weight", (q, k), {"row_weights": torch.tensor([[1.0, torch.nan, 1, 1, 1], [1.0] * 5])})
        yield Sample("weights-cancel", (q, k), {"row_weights": torch.tensor([[1.0, -1, 0, 0, 0], [2.0, 1, 1, 1, 1]])})
        for offset in (-3, -100, 2**62, -2**62):
            yield Sample(f"offset-{offset}", (q, k), {"causal": True, "causal_offset": offset, "reduce_rows": "sum"})
        yield Sample("more-rows-than-keys", pair(1, 2, 1, 40, 7, 8), {"causal": True})
        yield Sample("negative-scale", (q, k), {"scale": -2.0})
        yield Sample("zero-scale", (q, k), {"scale": 0.0, "reduce_heads": "sum"})
        yield Sample("all-equal-expanded", (rand(1, 1, 1, 16).expand(2, 4, 5, 16),
                                            rand(1, 1, 1, 16, seed=1).expand(2, 2, 99, 16)), {})
        yield Sample("offset-rows", (padded(q, 3), padded(k, 5)), {})
        yield Sample("width-1", pair(1, 2, 2, 3, 85, 1), {})
        yield Sample("width-300", pair(1, 2, 1, 3, 171, 300), {})
        yield Sample("page-strides", (q, rand(2, 2, 37, 512, seed=1)[..., 3:19]), {})
        for name, args, kwargs in (("no-keys", pair(2, 4, 2, 5, 0, 8), {}), ("no-rows", pair(2, 4, 2, 0, 9, 8), {}),
                                   ("no-batch", pair(0, 4, 2, 3, 9, 8), {"reduce_heads": "none"}),
                                   ("no-rows-max", pair(2, 4, 2, 0, 9, 8), {"reduce_rows": "max"}),
                                   ("none-scored", pair(2, 4, 2, 5, 9, 8), {"key_start": 9, "causal": True}),
                                   ("one", pair(1, 1, 1, 1, 1, 8), {})):
            yield Sample(name, args, kwargs)


def attention_varlen_samples(dtypes: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16)
                             ) -> Iterator[Sample]:
    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    cu_q, cu_k = ints(0, 3, 3, 4, 20), ints(0, 20, 21, 109, 109 + 9)
    bounds: tuple[Any, ...] = (cu_q, cu_k, 118, 16, 88)
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        q, k = rand(20, 4, 16, dtype=dtype), rand(118, 2, 16, dtype=dtype, seed=1)
        yield Sample(f"{tag}-plain", (q, k, *bounds), {})
        yield Sample(f"{tag}-causal-none", (q, k.transpose(0, 1).contiguous(), *bounds), {
            "causal": True, "reduce_rows": "max", "reduce_heads": "none", "kv_layout": "HND"})
        pages = rand(20, 16, 2, 16, dtype=dtype, seed=2)
        table = torch.randperm(20, generator=torch.Generator().manual_seed(3)).to(torch.int32)[None, :6].repeat(4, 1)
        table[2] = table[2].flip(0)
        paged = {"block_table": table}
        yield Sample(f"{tag}-paged", (q, pages, *bounds), {**paged, "causal": True})
        yield Sample(f"{tag}-paged-hnd-lse", (q, pages.transpose(1, 2), *bounds), {
            **paged, "kv_layout": "HND", "lse": rand(4, 20, seed=5).abs() + 3, "reduce_heads": "max"})
        broken = table.clone()
        broken[0, 1] = 20
        broken[2, 0] = -1
        broken[2, 2] = 2**31 - 1
        broken[3, 0] = -2**31
        for rows in ("mean", "max"):
            yield Sample(f"{tag}-broken-table-{rows}", (q, pages, *bounds), {"block_table": broken, "causal": True,
                                                                             "reduce_rows": rows})
        if dtype != torch.float32:
            continue
        weights = rand(20, seed=4).round()
        yield Sample("weights", (q, k, *bounds), {"row_weights": weights, "reduce_rows": "sum", "lse": _lse(
            q.transpose(0, 1), k[:20].transpose(0, 1))})
        yield Sample("logits", (q, k, *bounds), {"logits": True, "reduce_heads": "sum", "row_weights": weights.abs()})
        yield Sample("short-table", (q, pages, *bounds), {"block_table": table[:, :3]})
        yield Sample("strided-table", (q, pages.repeat_interleave(2, 0)[::2], *bounds), {
            "block_table": table.T.contiguous().T})
        yield Sample("too-long", (q, k, cu_q, cu_k, 118, 7, 30), {"causal": True})
        yield Sample("uncovered", (q, k, ints(0, 3, 9), ints(0, 50, 100), 118, 16, 88), {"reduce_heads": "none"})
        yield Sample("hostile-seqlens", (q, k, ints(2, 9, 5, 2**31 - 1), ints(3, 60, 50, -2**31), 118, 30, 88), {})
        yield Sample("nothing", (q, k, ints(0), ints(0), 118, 0, 0), {})
        yield Sample("no-keys", (q, k[:0], ints(0, 20), ints(0, 0), 0, 20, 0), {})
        yield Sample("no-blocks", (q, pages[:0], *bounds), {"block_table": table, "reduce_heads": "none"})
