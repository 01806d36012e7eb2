"""prune_topk and prune_topk_varlen: all outputs, hostile samples."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Sample, bytes_of, clustered, hostile_tokens, rand
from .compact import oracle_rows
from .score import assert_scores
from .select import oracle_topk


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


def assert_prune_topk_varlen(outputs: Any, hidden: Tensor, prototypes: Tensor, cu_seqlens: Tensor, k: Tensor,
                             total_out: int, kv: Any = None, *, keep_similar: bool = False,
                             span_starts: Tensor | None = None, span_lens: Tensor | None = None,
                             kv_layout: str = "HND") -> None:
    """All five outputs of `prune_topk_varlen`, its clamping of metadata replayed in Python."""
    out, out_kv, indices, scores, cu_out = outputs
    total = len(hidden)
    bounds = [min(max(v, 0), total) for v in cu_seqlens.tolist()]
    bounds = list(itertools.accumulate(bounds, max))
    kept: list[int] = []
    competing = torch.zeros(total, dtype=torch.bool)
    cu_want = [0]
    for i, count in enumerate(k.tolist()):
        begin, n = bounds[i], bounds[i + 1] - bounds[i]
        start = 0 if span_starts is None else min(max(int(span_starts[i]), 0), n)
        length = n if span_lens is None else min(max(int(span_lens[i]), 0), n - start)
        first = begin + start
        competing[first:first + length] = True
        chosen = oracle_topk(scores[None, first:first + length], min(max(count, 0), length), keep_similar)[0]
        kept += [*range(begin, first), *(first + j for j in chosen), *range(first + length, begin + n)]
        cu_want.append(len(kept))
    want = [*kept[:total_out], *[-1] * (total_out - len(kept))]
    assert indices.tolist() == want
    assert cu_out.tolist() == [min(v, total_out) for v in cu_want]
    assert scores[~competing].isnan().all()
    assert_scores(scores[competing], hidden[competing], prototypes)
    np.testing.assert_array_equal(bytes_of(out), oracle_rows(hidden[None], [want], 0, 1)[0])
    for t, got in zip(kv or (), out_kv, strict=True):
        dim = 2 if kv_layout == "HND" else 1
        np.testing.assert_array_equal(bytes_of(got), oracle_rows(t[None], [want], 0, dim)[0])


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
        yield Sample(f"{tag}-decreasing", (hidden, protos, ints(0, 50, 40, 120), ints(7, 0, 9), 16, kv), {})
        yield Sample(f"{tag}-uncovered", (hidden, protos, ints(0, 50, 100), ints(7, 3), 20, kv), {})
        yield Sample(f"{tag}-nothing", (hidden, protos, ints(0), ints(), 0, kv), {})
