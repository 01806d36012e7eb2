"""The slow suite: random shapes against the oracles, and offsets past 32 bits. `make test-long`."""

import mmap
import random

import pytest
import torch
from helpers import assert_same_bytes

from vtkernels import testing

pytestmark = pytest.mark.long
NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which the mmap module names only from Python 3.13 on


@pytest.mark.parametrize("seed", range(400))
def test_random_prune_topk(backend, seed):
    pick = random.Random(seed)
    dtype = pick.choice([torch.float32, torch.float16, torch.bfloat16])
    b, n, d, p = pick.randint(1, 4), pick.randint(1, 300), pick.randint(1, 700), pick.randint(1, 150)
    start = pick.randint(0, n)
    length = pick.randint(0, n - start)
    k = pick.choice([0, length, pick.randint(0, length)])
    layout = pick.choice(["HND", "NHD"])
    make = pick.choice([testing.rand, lambda *s, **kw: testing.rand(*s, **kw).round()])
    hidden = make(b, n, d + 2, dtype=dtype, seed=seed)[..., pick.randint(0, 2):][..., :d]
    prototypes = make(p, d, dtype=dtype, seed=seed + 1)
    kv = [testing.rand(*((b, 3, n, 5) if layout == "HND" else (b, n, 3, 5)), dtype=dtype, seed=s) for s in (2, 3)]
    if pick.random() < 0.3:
        hidden = hidden.clone()
        hidden[pick.randrange(b), pick.randrange(n), pick.randrange(d)] = pick.choice([torch.nan, torch.inf])
    args = (hidden, prototypes, k, kv)
    kwargs = {"keep_similar": pick.random() < 0.5, "span_start": start, "span_len": length, "kv_layout": layout}
    testing.assert_prune_topk(testing.run("prune_topk", backend, *args, **kwargs), *args, **kwargs)


@pytest.mark.parametrize("seed", range(400))
def test_random_select_topk(backend, seed):
    pick = random.Random(seed)
    b, n = pick.randint(1, 3), pick.choice([1, 2, pick.randint(3, 5000)])
    scores = testing.rand(b, n, seed=seed)
    if pick.random() < 0.6:
        scores = (scores * pick.choice([1, 4, 50])).round() / 4
    scores[scores.abs() < 0.1] = pick.choice([0.0, -0.0, torch.nan, torch.inf, -torch.inf])
    k, largest = pick.randint(0, n), pick.random() < 0.5
    assert testing.run("select_topk", backend, scores, k, largest=largest).tolist() == testing.oracle_topk(
        scores, k, largest)


@pytest.mark.parametrize("rows", [2**31 // 64 + 3, 2**33 // 64 + 5])
def test_offsets_past_32_bits(rows):
    width = 64
    memory = mmap.mmap(-1, rows * width * 2, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    tokens = torch.frombuffer(memory, dtype=torch.float16).view(1, rows, width)
    places = [0, 1, 2**31 // width - 1, 2**31 // width, rows - 2, rows - 1]
    for i, place in enumerate(places):
        tokens[0, place] = testing.rand(width, seed=i).half()
    indices = torch.tensor([places])
    (got,) = testing.run("gather_tokens", "cpu", [tokens], indices)
    assert_same_bytes(got[0], tokens[0, places])
    heads = tokens.view(1, 1, rows, width)
    assert_same_bytes(testing.run("gather_kv", "cpu", [heads], indices)[0][0, 0], tokens[0, places])
    ints = [torch.tensor(v, dtype=torch.int32) for v in ([rows - 4, rows], [2])]
    prototypes = testing.rand(2, width, seed=9).half()
    pruned = testing.run("prune_topk_varlen", "cpu", tokens[0], prototypes, *ints, 2, [heads[0]])
    kept = pruned[2].tolist()
    assert rows - 4 <= kept[0] < kept[1] < rows
    assert_same_bytes((pruned[0], pruned[1][0][0]), (tokens[0, kept], tokens[0, kept]))
    assert pruned[3][-4:].isfinite().all()


@pytest.mark.parametrize("first", range(0, 10_000, 1000))
def test_watermark_of_random_page_tables(backend, first):
    for seed in range(first, first + 1000):
        call = testing.watermark_call(seed)
        before = [testing.bytes_of(t).copy() for t in call.args[0]]
        testing.assert_watermark(call, before, testing.run("compact_kv_paged", backend, *call.args, **call.kwargs))
