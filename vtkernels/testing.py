"""Oracles, hostile inputs and checks, shared by the tests, the benchmarks and anyone who writes a backend.

The oracles are written in NumPy and Python integers, apart from the ops and their references: float64 sums, and a sort
of (class, value, position) for selection. Scores are judged against float64 by the error that plain torch makes in the
same dtype; selection is judged exactly, on the scores that the backend itself returned; moved rows are judged bytewise.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _dispatch

FLT_MIN = float(np.finfo(np.float32).tiny)
FLT_MAX = float(np.finfo(np.float32).max)


def run(name: str, backend: str, *args: Any, **kwargs: Any) -> Any:
    """Run an op or `.out` variant on one backend, whatever the order; raises with the reason when it cannot run."""
    tensor = next(_dispatch._tensors((*args, *kwargs.values())))
    reason = _dispatch.refusal(backend, tensor.device.type)
    if reason:
        raise RuntimeError(f"{name} on {backend}: {reason}")
    return _dispatch.function(name, backend)(*args, **kwargs)


def oracle_similarity(tokens: Tensor, prototypes: Tensor, metric: str = "cosine") -> np.ndarray:
    """[.., P] float64 similarities by the rules of `prototype_scores`."""
    x = tokens.detach().double().cpu().numpy()
    p = prototypes.detach().double().cpu().numpy()
    with np.errstate(all="ignore"):
        similarity = x @ p.T
        if metric == "cosine":
            similarity = similarity * _rnorm64(p) * _rnorm64(x)[..., None]
    return similarity


def _rnorm64(x: np.ndarray) -> np.ndarray:
    squares = (x * x).sum(-1)
    rnorm = np.where(squares < FLT_MIN, 0.0, 1 / np.sqrt(squares))
    return np.where(squares > FLT_MAX, np.nan, np.where(np.isnan(squares), np.nan, rnorm))


def assert_scores(scores: Tensor, tokens: Tensor, prototypes: Tensor, metric: str = "cosine",
                  argmax: Tensor | None = None) -> None:
    """No worse than plain float32 torch against float64; NaN where the oracle has it; an argmax that attains."""
    similarity = oracle_similarity(tokens, prototypes, metric)
    gold = similarity.max(-1) if similarity.size else similarity.sum(-1)  # NumPy's max propagates NaN
    got = scores.detach().double().cpu().numpy()
    assert got.shape == gold.shape, (got.shape, gold.shape)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(gold))
    plain = _plain_scores(tokens, prototypes, metric)
    ok = np.isfinite(gold)
    np.testing.assert_array_equal(got[~ok & ~np.isnan(gold)], gold[~ok & ~np.isnan(gold)])
    if ok.any():
        scale = max(1.0, float(np.abs(gold[ok]).max()))
        floor = 4 * np.finfo(np.float32).eps * scale * max(1.0, tokens.shape[-1] ** 0.5 / 8)
        allowed = max(float(np.abs(plain[ok] - gold[ok]).max()), floor)
        worst = float(np.abs(got[ok] - gold[ok]).max())
        assert worst <= 2 * allowed, f"score error {worst:.3g}, plain float32 torch has {allowed:.3g}"
        if argmax is not None:
            chosen = np.take_along_axis(similarity, argmax.cpu().numpy()[..., None].astype(np.int64), -1)[..., 0]
            gap = float((gold[ok] - chosen[ok]).max())
            assert gap <= 4 * allowed, f"argmax is {gap:.3g} under the maximum"


def _plain_scores(tokens: Tensor, prototypes: Tensor, metric: str) -> np.ndarray:
    x, p = tokens.detach().float().cpu(), prototypes.detach().float().cpu()
    if metric == "cosine":
        x, p = torch.nn.functional.normalize(x, dim=-1), torch.nn.functional.normalize(p, dim=-1)
    return (x @ p.T).amax(-1).double().numpy()


def oracle_topk(scores: Tensor, k: int, largest: bool) -> list[list[int]]:
    """Exact positions per row: NaN last, better score first, lower position first, then ascending."""
    rows = []
    for row in scores.detach().cpu().float().numpy():
        def rank(i: int, row: np.ndarray = row) -> tuple:
            value = float(row[i])
            return (1, 0.0, i) if np.isnan(value) else (0, -value if largest else value, i)

        rows.append(sorted(sorted(range(len(row)), key=rank)[:k]))
    return rows


def bytes_of(t: Tensor) -> np.ndarray:
    """Raw bytes, last axis per element, for exact comparison of any dtype."""
    return t.detach().cpu().contiguous().unsqueeze(-1).view(torch.uint8).numpy()


def oracle_rows(t: Tensor, indices: Any, batch_dim: int, token_dim: int) -> np.ndarray:
    """Bytes of the gathered tensor for indices [B, k], zeros for positions outside the row."""
    indices = np.asarray(indices)
    raw = np.moveaxis(bytes_of(t), (batch_dim, token_dim), (0, 1))
    count = indices.shape[1] if indices.ndim == 2 else 0
    out = np.zeros((raw.shape[0], count, *raw.shape[2:]), np.uint8)
    for b, row in enumerate(indices):
        for j, i in enumerate(row):
            if 0 <= i < raw.shape[1]:
                out[b, j] = raw[b, i]
    return np.moveaxis(out, (0, 1), (batch_dim, token_dim))


def assert_prune_topk(outputs: Any, hidden: Tensor, prototypes: Tensor, k: int, kv: Sequence[Tensor] | None = None, *,
                      keep_similar: bool = False, span_start: int = 0, span_len: int = -1,
                      span_starts: Tensor | None = None, prototype_rnorm: Tensor | None = None,
                      kv_layout: str = "HND") -> None:
    """All four outputs of `prune_topk`: scores against float64, indices and rows exactly."""
    out_hidden, out_kv, indices, scores = outputs
    batch, n, _ = hidden.shape
    length = n - span_start if span_len == -1 else span_len
    starts = [span_start] * batch if span_starts is None else [
        min(max(int(s), 0), n - length) for s in span_starts.tolist()]
    spans = torch.stack([hidden[b, s:s + length] for b, s in enumerate(starts)]) if batch else hidden[:, :length]
    assert_scores(scores, spans, prototypes)
    expected = [[*range(s), *(s + i for i in row), *range(s + length, n)]
                for s, row in zip(starts, oracle_topk(scores, k, keep_similar), strict=True)]
    assert indices.tolist() == expected
    np.testing.assert_array_equal(bytes_of(out_hidden), oracle_rows(hidden, expected, 0, 1))
    assert len(out_kv) == len(kv or ())
    for cache, got in zip(kv or (), out_kv, strict=True):
        np.testing.assert_array_equal(bytes_of(got), oracle_rows(cache, expected, 0, 2 if kv_layout == "HND" else 1))


class Sample(NamedTuple):
    """One call of an op."""

    name: str
    args: tuple
    kwargs: dict[str, Any]


def rand(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def clustered(n: int, d: int, centres: int = 7, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """[n, d] tokens around a few directions: the cosines crowd together, as those of real features do."""
    base = rand(centres, d, seed=seed)
    pick = torch.randint(centres, (n,), generator=torch.Generator().manual_seed(seed + 1))
    return (base[pick] + 0.3 * rand(n, d, seed=seed + 2)).to(dtype)


def hostile_tokens(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[n, d], n >= 12: NaN, infinities, signed zeros, zero rows, equal rows, tiny and huge norms among normal rows."""
    x = rand(n, d, dtype=torch.float32)
    x[0, 0] = float("nan")
    x[1] = float("inf")
    x[2] = -float("inf")
    x[3] = 0.0
    x[4] = -0.0
    x[5] = x[6]
    x[7] *= 1e-4
    x[8] *= 100
    x[9] = 1e-30 if dtype != torch.float16 else 0.0
    x[10] = 3e38 if dtype != torch.float16 else 6e4
    x[11, -1] = -float("inf")
    return x.to(dtype)


def _padded(t: Tensor, pad: int) -> Tensor:
    """The same values in rows that are `pad` elements longer, offset by one element."""
    wide = t.new_zeros((*t.shape[:-1], t.shape[-1] + pad))
    wide[..., 1:1 + t.shape[-1]] = t
    return wide[..., 1:1 + t.shape[-1]]


def score_samples(dtypes: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16)) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        for b, n, d, p in ((1, 1, 1, 1), (1, 63, 40, 5), (2, 37, 129, 33), (3, 100, 64, 97), (1, 0, 16, 3)):
            yield Sample(f"{tag}-{b}x{n}x{d}-P{p}", (rand(b, n, d, dtype=dtype), rand(p, d, dtype=dtype, seed=1)), {})
        yield Sample(f"{tag}-hostile", (hostile_tokens(40, 24, dtype)[None], rand(9, 24, dtype=dtype, seed=1)), {})
        yield Sample(f"{tag}-packed", (clustered(50, 32, dtype=dtype), clustered(6, 32, dtype=dtype, seed=3)), {})
        zero = rand(4, 24, dtype=dtype, seed=1)
        zero[1] = 0
        yield Sample(f"{tag}-zero-prototype", (rand(2, 20, 24, dtype=dtype), zero), {})
        yield Sample(f"{tag}-dot", (rand(1, 30, 48, dtype=dtype), rand(10, 48, dtype=dtype, seed=1)), {"metric": "dot"})
        same = rand(1, 24, dtype=dtype).expand(31, 24)
        yield Sample(f"{tag}-equal-expanded", (same[None], rand(1, 24, dtype=dtype, seed=1).expand(5, 24)), {})
        strided = rand(2, 40, 50, dtype=dtype)[:, ::2, 1:34]
        yield Sample(f"{tag}-strided", (strided, rand(7, 66, dtype=dtype)[:, ::2]), {})
        yield Sample(f"{tag}-transposed", (rand(2, 24, 30, dtype=dtype).mT, rand(24, 7, dtype=dtype).T), {})


def topk_samples() -> Iterator[Sample]:
    nan, inf = float("nan"), float("inf")
    edge = torch.tensor([[0.0, -0.0, nan, inf, -inf, 1.0, 1.0, -nan, 1e-45, -1e-45, 3.4e38, -3.4e38, 0.5]])
    for largest in (True, False):
        tag = "largest" if largest else "smallest"
        for k in range(edge.shape[1] + 1):
            yield Sample(f"edge-{tag}-k{k}", (edge, k), {"largest": largest})
        ties = (rand(3, 257) * 2).round()
        for k in (0, 1, 100, 256, 257):
            yield Sample(f"ties-{tag}-k{k}", (ties, k), {"largest": largest})
        for n, k in ((0, 0), (1, 1), (1, 0), (64, 13), (1000, 250), (4099, 1024), (70001, 17500)):
            yield Sample(f"random-{tag}-n{n}-k{k}", (rand(2 if n < 5000 else 1, n), k), {"largest": largest})
        yield Sample(f"equal-{tag}", (torch.full((2, 300), 0.25), 77), {"largest": largest})
        yield Sample(f"all-nan-{tag}", (torch.full((1, 40), nan), 7), {"largest": largest})
        yield Sample(f"cosines-{tag}", (0.9 + 0.01 * rand(1, 2880), 288), {"largest": largest})
        yield Sample(f"strided-{tag}", (rand(6, 90)[::2, ::3], 11), {"largest": largest})
        yield Sample(f"expanded-{tag}", (rand(1, 33).expand(4, 33), 5), {"largest": largest})
    yield Sample("no-rows", (rand(0, 5), 2), {})


def gather_tokens_samples() -> Iterator[Sample]:
    ids = torch.arange(20)
    idx = torch.tensor([[0, 3, 4, 19], [1, 2, 7, 11]])
    yield Sample("hidden", ([rand(2, 20, 33)], idx), {})
    yield Sample("aligned", ([rand(2, 20, 16, dtype=torch.bfloat16), ids.expand(2, 20), ids.expand(3, 2, 20),
                              rand(2, 20, 3, 5)], idx.int()), {"token_dims": [1, 1, 2, 1]})
    yield Sample("out-of-range", ([rand(2, 20, 8)], torch.tensor([[-1, 0, 20], [2**31, 5, -2**40]])), {})
    yield Sample("repeated-descending", ([rand(2, 20, 8)], torch.tensor([[5, 5, 0], [19, 2, 2]])), {})
    yield Sample("bool-bytes", ([rand(2, 20, 7) > 0, torch.arange(40, dtype=torch.uint8).view(2, 20)], idx), {})
    yield Sample("strided", ([rand(4, 20, 20)[::2, :, ::3], rand(20, 2, 6).transpose(0, 1)], idx), {})
    yield Sample("offset", ([_padded(rand(2, 20, 9, dtype=torch.float16), 3)], idx), {})
    yield Sample("none-kept", ([rand(2, 20, 8)], idx[:, :0]), {})
    yield Sample("no-tokens", ([rand(2, 0, 8)], torch.zeros(2, 1, dtype=torch.int64)), {})
    yield Sample("no-rows", ([rand(0, 20, 8)], idx[:0]), {})


def gather_kv_samples() -> Iterator[Sample]:
    idx = torch.tensor([[0, 3, 4, 19], [1, 2, 7, 11]])
    for layout in ("HND", "NHD"):
        def cache(h: int, d: int, dtype: torch.dtype = torch.float32, layout: str = layout) -> Tensor:
            return rand(*((2, h, 20, d) if layout == "HND" else (2, 20, h, d)), dtype=dtype)

        yield Sample(f"{layout}-pair", ([cache(4, 16), cache(4, 16)], idx), {"kv_layout": layout})
        mixed = [cache(4, 16, torch.bfloat16), cache(1, 5), cache(2, 8).to(torch.float8_e4m3fn), cache(3, 7) > 0]
        yield Sample(f"{layout}-mixed", (mixed, idx.int()), {"kv_layout": layout})
        yield Sample(f"{layout}-layers", ([cache(2, 8, torch.float16) for _ in range(70)], idx), {"kv_layout": layout})
        yield Sample(f"{layout}-bad", ([cache(2, 8)], torch.tensor([[-5, 0], [20, 2**40]])), {"kv_layout": layout})
        yield Sample(f"{layout}-strided", ([cache(6, 24)[:, ::2, :, ::2] if layout == "HND" else
                                            cache(6, 24)[:, :, ::3, 1:12]], idx), {"kv_layout": layout})
        yield Sample(f"{layout}-expanded", ([cache(1, 8).expand(2, 5, 20, 8) if layout == "HND" else
                                             cache(1, 8).expand(2, 20, 5, 8)], idx), {"kv_layout": layout})
        yield Sample(f"{layout}-none", ([cache(2, 8)], idx[:, :0]), {"kv_layout": layout})
    yield Sample("HND-transposed", ([rand(2, 20, 3, 8).transpose(1, 2)], idx), {})


def prune_samples(dtypes: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16)) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")

        def caches(b: int, n: int, layout: str = "HND", dtype: torch.dtype = dtype) -> list[Tensor]:
            return [rand(*((b, 2, n, 8) if layout == "HND" else (b, n, 2, 8)), dtype=dtype, seed=s) for s in (5, 6)]

        for b, n, d, p, k in ((1, 1, 8, 1, 1), (1, 1, 8, 1, 0), (2, 37, 40, 5, 9), (1, 67, 129, 33, 67),
                              (3, 100, 32, 20, 25)):
            yield Sample(f"{tag}-{b}x{n}x{d}-k{k}", (rand(b, n, d, dtype=dtype), rand(p, d, dtype=dtype, seed=1), k,
                                                    caches(b, n)), {})
        hidden, protos = clustered(90, 48, dtype=dtype).view(2, 45, 48), clustered(11, 48, dtype=dtype, seed=4)
        yield Sample(f"{tag}-no-kv", (hidden, protos, 12), {})
        yield Sample(f"{tag}-similar", (hidden, protos, 12, caches(2, 45)), {"keep_similar": True})
        yield Sample(f"{tag}-span", (hidden, protos, 7, caches(2, 45)), {"span_start": 5, "span_len": 30})
        yield Sample(f"{tag}-span-to-end", (hidden, protos, 7, caches(2, 45)), {"span_start": 20})
        yield Sample(f"{tag}-empty-span", (hidden, protos, 0, caches(2, 45)), {"span_start": 9, "span_len": 0})
        yield Sample(f"{tag}-span-starts", (hidden, protos, 7, caches(2, 45)),
                     {"span_starts": torch.tensor([3, 15], dtype=torch.int32), "span_len": 30})
        yield Sample(f"{tag}-bad-span-starts", (hidden, protos, 7, caches(2, 45)),
                     {"span_starts": torch.tensor([-4, 2**31 - 1], dtype=torch.int32), "span_len": 30})
        yield Sample(f"{tag}-nhd", (hidden, protos, 7, caches(2, 45, "NHD")), {"kv_layout": "NHD"})
        hostile = hostile_tokens(40, 24, dtype)
        both = torch.stack([hostile, hostile.flip(0)])
        yield Sample(f"{tag}-hostile", (both, rand(9, 24, dtype=dtype, seed=1), 13), {})
        yield Sample(f"{tag}-hostile-similar", (hostile[None], rand(9, 24, dtype=dtype, seed=1), 35),
                     {"keep_similar": True})
        yield Sample(f"{tag}-all-equal", (rand(1, 1, 24, dtype=dtype).expand(2, 50, 24),
                                          rand(3, 24, dtype=dtype, seed=1), 20), {})
        yield Sample(f"{tag}-strided", (rand(4, 60, 50, dtype=dtype)[::2, 1::2, 3:36], rand(7, 66, dtype=dtype)[:, ::2],
                                        8, [caches(2, 60)[0][:, :, ::2, ::2]]), {})
        yield Sample(f"{tag}-layers", (hidden, protos, 9, [c for _ in range(6) for c in caches(2, 45)]), {})


def varlen_samples(dtypes: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16)) -> Iterator[Sample]:
    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        hidden, protos = clustered(120, 40, dtype=dtype), clustered(9, 40, dtype=dtype, seed=4)
        kv = [rand(2, 120, 8, dtype=dtype, seed=s) for s in (5, 6)]
        nhd = [t.transpose(0, 1).contiguous() for t in kv]
        cu = ints(0, 30, 31, 31, 120)
        yield Sample(f"{tag}-whole", (hidden, protos, cu, ints(7, 1, 0, 20), 28, kv), {})
        yield Sample(f"{tag}-similar-nhd", (hidden, protos, cu, ints(7, 0, 0, 20), 40, nhd),
                     {"keep_similar": True, "kv_layout": "NHD"})
        spans = {"span_starts": ints(4, 0, 0, 10), "span_lens": ints(20, 1, 0, 60)}
        yield Sample(f"{tag}-spans", (hidden, protos, cu, ints(5, 1, 0, 11), 56, kv), spans)
        yield Sample(f"{tag}-hostile-metadata", (hidden, protos, ints(3, 50, 40, 2**31 - 1), ints(99, -7, 12), 50, kv),
                     {"span_starts": ints(-2, 5, 60), "span_lens": ints(400, 3, -1)})
        yield Sample(f"{tag}-truncated", (hidden, protos, cu, ints(7, 1, 0, 20), 15, kv), {})
        yield Sample(f"{tag}-uncovered", (hidden, protos, ints(0, 50, 100), ints(7, 3), 20, kv), {})
        yield Sample(f"{tag}-nothing", (hidden, protos, ints(0), ints(), 0, kv), {})


SAMPLES: dict[str, Callable[[], Iterator[Sample]]] = {
    "prototype_scores": score_samples,
    "select_topk": topk_samples,
    "gather_tokens": gather_tokens_samples,
    "gather_kv": gather_kv_samples,
    "prune_topk": prune_samples,
    "prune_topk_varlen": varlen_samples,
}
