"""A sequence alone gives the bytes that it gives among others, for the ops that take packed sequences or pages."""

import pytest
import test_isolation
import torch
from helpers import assert_same_bytes

from vtkernels import testing

LENGTHS, KEPT = (30, 1, 0, 57, 12), (7, 1, 0, 20, 12)
TOTAL, D, SIZE, PAGES = sum(LENGTHS), 33, 4, 40
BOUNDS = torch.tensor([0, *LENGTHS]).cumsum(0).int()
SEQUENCES = ("attention_scores_varlen", "compact_kv_paged", "prune_topk_paged", "prune_topk_varlen",
             "select_topk_varlen")


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def own(i: int) -> slice:
    return slice(int(BOUNDS[i]), int(BOUNDS[i + 1]))


def table() -> torch.Tensor:
    """Pages of each sequence, none of them shared."""
    pages = torch.randperm(PAGES, generator=torch.Generator().manual_seed(1)).int()
    rows = torch.full((len(LENGTHS), 15), -1, dtype=torch.int32)
    first = 0
    for i, n in enumerate(LENGTHS):
        count = -(-n // SIZE)
        rows[i, :count] = pages[first:first + count]
        first += count
    return rows


def test_every_op_is_here_or_among_the_rows():
    rows = set(test_isolation.cases(torch.float32))
    assert rows | set(SEQUENCES) == set(testing.SAMPLES)
    assert not rows & set(SEQUENCES)


def test_select_topk_varlen(backend):
    scores = (testing.rand(TOTAL) * 4).round()
    indices, ends = testing.run("select_topk_varlen", backend, scores, BOUNDS, ints(*KEPT), sum(KEPT))
    for i, (n, k) in enumerate(zip(LENGTHS, KEPT, strict=True)):
        alone = testing.run("select_topk_varlen", backend, scores[own(i)].clone(), ints(0, n), ints(k), k)
        assert torch.equal(indices[int(ends[i]):int(ends[i + 1])] - int(BOUNDS[i]), alone[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_scores_varlen(dtype, causal):
    query, key = testing.rand(TOTAL, 4, 16, dtype=dtype), testing.rand(TOTAL, 2, 16, dtype=dtype, seed=1)
    together = testing.run("attention_scores_varlen", "cpu", query, key, BOUNDS, BOUNDS, TOTAL, max(LENGTHS),
                           max(LENGTHS), causal=causal)
    for i, n in enumerate(LENGTHS):
        one = ints(0, n)
        alone = testing.run("attention_scores_varlen", "cpu", query[own(i)].clone(), key[own(i)].clone(), one, one, n,
                            n, n, causal=causal)
        assert_same_bytes(alone, together[own(i)])


def test_compact_kv_paged(backend):
    pages, lengths = table(), ints(*LENGTHS)
    kept = torch.full((len(LENGTHS), max(KEPT)), -1)
    for i, (n, k) in enumerate(zip(LENGTHS, KEPT, strict=True)):
        kept[i, :k] = torch.randperm(n, generator=torch.Generator().manual_seed(i))[:k].sort().values
    before = testing.rand(PAGES, SIZE, 2, 8, seed=3)
    pool = before.clone()
    together = testing.run("compact_kv_paged", backend, [pool], pages, lengths, kept)
    for i in range(len(LENGTHS)):
        alone_pool, row = before.clone(), slice(i, i + 1)
        alone = testing.run("compact_kv_paged", backend, [alone_pool], pages[row], lengths[row], kept[row])
        assert_same_bytes(alone, [t[row] for t in together])
        mine = [int(page) for page in pages[i] if page >= 0]
        others = [page for page in range(PAGES) if page not in mine]
        assert_same_bytes(alone_pool[mine], pool[mine])
        assert_same_bytes(alone_pool[others], before[others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_prune_topk_paged(dtype):
    hidden = testing.clustered(TOTAL, D, dtype=dtype)
    prototypes = testing.clustered(9, D, dtype=dtype, seed=4)
    pages, lengths = table(), ints(*LENGTHS)
    before = testing.rand(PAGES, SIZE, 2, 8, dtype=dtype, seed=3)
    pool = before.clone()
    rows, indices, scores, ends, *paged = testing.run(
        "prune_topk_paged", "cpu", hidden, prototypes, BOUNDS, ints(*KEPT), sum(KEPT), [pool], pages, lengths)
    for i, (n, k) in enumerate(zip(LENGTHS, KEPT, strict=True)):
        alone_pool, row, part = before.clone(), slice(i, i + 1), slice(int(ends[i]), int(ends[i + 1]))
        alone = testing.run("prune_topk_paged", "cpu", hidden[own(i)].clone(), prototypes, ints(0, n), ints(k), k,
                            [alone_pool], pages[row], lengths[row])
        assert_same_bytes(alone[:3], (rows[part], indices[part] - int(BOUNDS[i]), scores[own(i)]))
        assert_same_bytes(alone[4:], (paged[0][row], paged[1][part], paged[2][row]))
        mine = [int(page) for page in pages[i] if page >= 0]
        assert_same_bytes(alone_pool[mine], pool[mine])
