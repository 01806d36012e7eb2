"""What a row's neighbours may change: nothing. Each row alone gives the bytes that it gives in a batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same_bytes, flat

from vtkernels import testing
from vtkernels.testing import rand

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BATCH, N, D = 5, 70, 33


def tokens(dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return testing.clustered(BATCH * N, D, dtype=dtype, seed=seed).view(BATCH, N, D)


def heads(n: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return rand(BATCH, 2, n, 16, dtype=dtype, seed=seed)


def picks(count: int, seed: int = 3) -> torch.Tensor:
    return torch.rand(BATCH, N, generator=torch.Generator().manual_seed(seed)).argsort(-1)[:, :count].sort(-1).values


# For each op, the tensors whose first dimension is the batch, and the call on some of their rows.
Case = tuple[list[torch.Tensor], Callable[..., Any]]


def cases(dtype: torch.dtype) -> dict[str, Case]:
    prototypes = testing.clustered(9, D, dtype=dtype, seed=4)
    scores = (rand(BATCH, N) * 4).round()

    def op(name: str, **kwargs: Any) -> Callable[..., Any]:
        return lambda backend, *args: testing.run(name, backend, *args, **kwargs)

    def inplace(backend: str, cache: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        cache = cache.clone()
        testing.run("gather_kv_inplace", backend, [cache], indices)
        return cache

    x, kept = tokens(dtype), picks(20)
    codes = testing.run("quantize_kv", "cpu", heads(N, dtype, 3), heads(N, dtype, 4), [kept], [4])
    return {
        "prototype_scores": ([x], lambda b, t: testing.run("prototype_scores", b, t, prototypes)),
        "prototype_topm": ([x], lambda b, t: testing.run("prototype_topm", b, t, prototypes, 3)),
        "prototype_softmax_scores": ([x], lambda b, t: testing.run("prototype_softmax_scores", b, t, prototypes)),
        "attention_scores": ([heads(7, dtype, 1), heads(N, dtype, 2)], op("attention_scores")),
        "temporal_scores": ([x.view(BATCH, 7, 10, D)], op("temporal_scores")),
        "row_statistics": ([x], op("row_statistics")),
        "subspace_residual": ([x, rand(BATCH, 4, D, dtype=dtype)], op("subspace_residual")),
        "select_topk": ([scores], lambda b, s: testing.run("select_topk", b, s, 20, order="score")),
        "select_threshold": ([scores], lambda b, s: testing.run("select_threshold", b, s, 0.5)[:2]),
        "select_top_p": ([scores.softmax(-1)], lambda b, s: testing.run("select_top_p", b, s, 0.8)[:2]),
        "select_quota": ([scores], lambda b, s: testing.run(
            "select_quota", b, s, torch.tensor([0, 30, 31, 60], dtype=torch.int32), 20, 4)),
        "allocate_budget": ([scores.abs()], lambda b, s: testing.run("allocate_budget", b, s, 500)),
        "select_diverse": ([x], lambda b, t: testing.run("select_diverse", b, t, 12)),
        "match_bipartite": ([x], lambda b, t: testing.run("match_bipartite", b, t, 20)),
        "cluster_density_peaks": ([x], lambda b, t: testing.run("cluster_density_peaks", b, t, 6)),
        "cluster_kmeans": ([x], lambda b, t: testing.run("cluster_kmeans", b, t, 6, iterations=3)),
        "cluster_kmedoids": ([x], lambda b, t: testing.run("cluster_kmedoids", b, t, 6, iterations=3)),
        "gather_tokens": ([x, picks(11)], lambda b, t, i: testing.run("gather_tokens", b, [t], i)),
        "gather_kv": ([heads(N, dtype, 3), picks(11)], lambda b, t, i: testing.run("gather_kv", b, [t], i)),
        "gather_kv_inplace": ([heads(N, dtype, 3), picks(11)], inplace),
        "rotate_keys": ([heads(N, dtype, 3), picks(N)],
                        lambda b, t, i: testing.run("rotate_keys", b, t, i, 1 / torch.arange(1, 9).float())),
        "merge_tokens": ([x, picks(N) % 9], lambda b, t, i: testing.run("merge_tokens", b, t, i, 9)),
        "pool_span": ([x], lambda b, t: testing.run("pool_span", b, t, 3, ceil=True)),
        "shuffle_tokens": ([x[:, :64]], lambda b, t: testing.run("shuffle_tokens", b, t, 8)),
        "unshuffle_tokens": ([x[..., :32]], lambda b, t: testing.run("unshuffle_tokens", b, t, 20)),
        "quantize_kv": ([heads(N, dtype, 3), heads(N, dtype, 4), picks(20)],
                        lambda b, k, v, i: testing.run("quantize_kv", b, k, v, [i], [4])),
        "dequantize_kv": ([t for (t,) in codes] + [kept], lambda b, *t: testing.run(
            "dequantize_kv", b, *([one] for one in t), [4], N, dtype=dtype)),
        "cell_attention": ([heads(4, dtype, 1), heads(16, dtype, 2), heads(16, dtype, 3)],
                           lambda b, q, k, v: testing.run("cell_attention", b, q, k, v, 4, 2)),
        "argmax_attention": ([heads(7, dtype, 1), heads(N, dtype, 2)], op("argmax_attention")),
        "prune_topk": ([x, heads(N, dtype, 5)],
                       lambda b, t, kv: testing.run("prune_topk", b, t, prototypes, 20, [kv], span_start=4)),
    }


CASES = [pytest.param(name, dtype, id=f"{name}-{str(dtype).removeprefix('torch.')}")
         for dtype in DTYPES for name in cases(dtype)]


def row(tensors: Any, b: int) -> list[torch.Tensor]:
    return [t[b:b + 1] for t in flat(tensors)]


@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_a_row_alone_gives_what_it_gives_in_a_batch(op, dtype):
    arguments, call = cases(dtype)[op]
    together = call("cpu", *arguments)
    for b in range(BATCH):
        assert_same_bytes(call("cpu", *(t[b:b + 1].clone() for t in arguments)), row(together, b))


@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_a_poisoned_row_changes_no_other(op, dtype):
    arguments, call = cases(dtype)[op]
    before = call("cpu", *arguments)
    for poison in (torch.nan, torch.inf, -torch.inf):
        spoilt = [t.clone() for t in arguments]
        for t in spoilt:
            t[2] = poison if t.is_floating_point() else min(2**40, torch.iinfo(t.dtype).max)
        after = call("cpu", *spoilt)
        for b in (0, 1, 3, 4):
            assert_same_bytes(row(after, b), row(before, b))


def test_a_sequence_alone_gives_what_it_gives_among_others():
    """Packed sequences, too: scores, selection and rows of each are those of a call of its own."""
    backend = "cpu"  # the reference multiplies through torch, whose blocking depends on the batch
    lengths, kept = [30, 1, 0, 57, 12], [7, 1, 0, 20, 12]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    hidden, prototypes = testing.clustered(100, D), testing.clustered(9, D, seed=4)
    outputs = testing.run("prune_topk_varlen", backend, hidden, prototypes, bounds, torch.tensor(kept).int(), sum(kept))
    ends = outputs[4].tolist()
    for i, (n, k) in enumerate(zip(lengths, kept, strict=True)):
        first = int(bounds[i])
        alone = testing.run("prune_topk_varlen", backend, hidden[first:first + n].clone(), prototypes,
                            torch.tensor([0, n]).int(), torch.tensor([k]).int(), k)
        part = slice(ends[i], ends[i + 1])
        assert_same_bytes((outputs[0][part], outputs[2][part] - first, outputs[3][first:first + n]),
                          (alone[0], alone[2], alone[3]))


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, 100_000, 10_000))
def test_two_tenants(first):
    """No byte of another tenant's page anywhere, over 100,000 page tables, most of them corrupt."""
    for seed in range(first, first + 10_000):
        call = testing.watermark_call(seed)
        before = [testing.bytes_of(t).copy() for t in call.args[0]]
        testing.assert_watermark(call, before, testing.run("compact_kv_paged", "cpu", *call.args, **call.kwargs))
