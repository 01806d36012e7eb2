"""compact_kv_paged and prune_topk_paged on the backends of the CPU: exact bytes of whole pools, hostile tables."""

import copy

import pytest
import torch
from helpers import assert_contract, assert_refused, assert_same_bytes, run_out, samples

import vtkernels
from vtkernels import _library, testing
from vtkernels.testing import Sample, paged
from vtkernels.testing.paged import ints

COMPACT, PRUNE = "compact_kv_paged", "prune_topk_paged"
TABLE, LENGTHS, KEPT = ints([4, 9, 1, 0], [7, 2, 11, 3]), ints(14, 9), torch.tensor([[0, 2, 5, 13], [1, 3, 8, -1]])


def fresh(sample):
    """The sample on memory of its own, and the bytes of its pools: ops change them."""
    args, kwargs = copy.deepcopy((sample.args, sample.kwargs))
    pools = next(a for a in args if isinstance(a, list))
    return Sample(sample.name, args, kwargs), [testing.bytes_of(t).copy() for t in pools]


def pools_of(sample):
    return next(a for a in sample.args if isinstance(a, list))


@samples(COMPACT)
def test_compact(backend, sample):
    call, before = fresh(sample)
    outputs = testing.run(COMPACT, backend, *call.args, **call.kwargs)
    assert_contract(COMPACT, outputs, call)
    testing.assert_compact_kv_paged(outputs, *call.args, before=before, **call.kwargs)


@samples(PRUNE)
def test_prune(backend, sample):
    call, before = fresh(sample)
    outputs = testing.run(PRUNE, backend, *call.args, **call.kwargs)
    assert_contract(PRUNE, outputs, call)
    testing.assert_prune_topk_paged(outputs, *call.args, before=before, **call.kwargs)


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
@samples(COMPACT)
def test_out_variant_of_compact(backend, sample, index_dtype):
    (want_call, _), (call, _), status = fresh(sample), fresh(sample), torch.tensor([64], dtype=torch.int32)
    want = testing.run(COMPACT, backend, *want_call.args, **want_call.kwargs)
    outs = run_out(COMPACT, backend, call, index_dtype, status=status)
    assert_same_bytes(outs, [t.to(o.dtype) for t, o in zip(want, outs, strict=True)])
    assert_same_bytes(call.args[0], want_call.args[0])
    assert status.item() == 64 | paged.compact_result(*sample.args, **sample.kwargs).status
    assert (status.item() != 64) == sample.name.startswith(("bad", "shared", "overlapping", "too-few"))


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
@samples(PRUNE)
def test_out_variant_of_prune(backend, sample, index_dtype):
    (want_call, _), (call, _), status = fresh(sample), fresh(sample), torch.zeros(1, dtype=torch.int32)
    want = testing.run(PRUNE, backend, *want_call.args, **want_call.kwargs)
    workspace = torch.zeros(vtkernels.workspace_size(len(sample.args[3])), dtype=torch.int32)
    outs = run_out(PRUNE, backend, call, index_dtype, status=status, workspace=workspace)
    assert_same_bytes(outs, [t.to(o.dtype) for t, o in zip(want, outs, strict=True)])
    assert_same_bytes(pools_of(call), pools_of(want_call))
    want_status = {"hostile-metadata": _library.STATUS_BAD_SPAN | _library.STATUS_BAD_SEQLENS |
                   _library.STATUS_TRUNCATED | _library.STATUS_BAD_PAGE,
                   "truncated": _library.STATUS_TRUNCATED, "bad-context": _library.STATUS_BAD_SEQLENS |
                   _library.STATUS_BAD_INDEX,
                   "first-tokens-shared-page": _library.STATUS_SHARED_PAGE}.get(sample.name.split("-", 1)[1], 0)
    assert status.item() == want_status


def test_the_pages_follow_the_selection_of_the_tokens(backend):
    """K and V hold the number of their token: after the call they say which tokens were kept, in order."""
    n, size = 37, 4
    hidden, protos = testing.clustered(n, 16), testing.clustered(5, 16, seed=2)
    table = torch.randperm(12, generator=torch.Generator().manual_seed(1)).int()[None]
    cache = torch.full((12, size, 1, 1), -1)
    for t in range(n):
        cache[table[0, t // size], t % size] = t
    outputs = testing.run(PRUNE, backend, hidden, protos, ints(0, n), ints(9), 9, [cache], table, ints(n))
    want = vtkernels.prune_topk(hidden[None], protos, 9)[2][0]
    assert outputs[1].tolist() == want.tolist()
    assert cache.flatten()[outputs[5]].tolist() == want.tolist()
    assert outputs[6][0, :8].tolist() == [*table[0, 3:10].tolist(), -1]


# Layouts of engines: `tokens` reads sequence b back, token by token, from the engine's own tensor.

def vllm(layout):
    """[L, B, H, N, C] in any order of memory; C holds K and V."""
    shape, order = {"L": 3, "B": 12, "H": 2, "N": 4, "C": 6}, layout
    cache = paged.pool(*(shape[d] for d in order)).permute(*(order.index(d) for d in "LBHNC"))
    return cache, list(cache.unbind(0)), "HND", lambda page, offset: cache[:, page, :, offset]


def vllm_stacked(_):
    caches = [paged.pool(2, 12, 4, 2, 5, dtype=torch.bfloat16, seed=s) for s in range(3)]
    pools = [t for cache in caches for t in cache.unbind(0)]
    return caches[0], pools, "NHD", lambda page, offset: torch.stack(caches)[:, :, page, offset]


def flashinfer(layout):
    cache = paged.pool(*((12, 2, 4, 3, 5) if layout == "NHD" else (12, 2, 3, 4, 5)), dtype=torch.float16)
    token = (lambda p, o: cache[p, :, o]) if layout == "NHD" else (lambda p, o: cache[p, :, :, o])
    return cache, list(cache.unbind(1)), layout, token


def sglang(_):
    buffers = [paged.pool(48, 2, 5, dtype=torch.float8_e4m3fn, seed=s) for s in range(4)]
    return buffers[0], [b[:, None] for b in buffers], "NHD", lambda slot, _: torch.stack(
        [b.view(torch.uint8)[slot] for b in buffers])


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(("engine", "layout"), [
    (vllm, "LBHNC"), (vllm, "LBNHC"), (vllm, "LHBNC"), (vllm, "BLHNC"), (vllm, "BLNHC"), (vllm, "BHLNC"),
    (vllm_stacked, ""), (flashinfer, "NHD"), (flashinfer, "HND"), (sglang, "")])
def test_layouts_of_engines(backend, engine, layout, in_place):
    _, pools, kv_layout, token = engine(layout)
    size = pools[0].shape[1 if kv_layout == "NHD" else 2]
    pages = torch.randperm(pools[0].shape[0], generator=torch.Generator().manual_seed(3)).int()
    held = -(-14 // size)
    table, target = pages[:2 * held].view(2, held), pages[2 * held:][:2 * (4 // size if size < 4 else 1)].view(2, -1)

    def at(row, place):
        return int(row[place // size]), place % size

    want = [[token(*at(table[b], p)).clone() for p in KEPT[b].tolist() if p >= 0] for b in range(2)]
    others = {p: token(int(p), 0).clone() for p in pages[2 * held + target.numel():].tolist()}
    dst = {} if in_place else {"dst_block_table": target}
    lengths, slots, _ = testing.run(COMPACT, backend, pools, table, LENGTHS, KEPT, kv_layout=kv_layout, **dst)
    assert lengths.tolist() == [4, 3]
    for b, tokens in enumerate(want):
        for j, value in enumerate(tokens):
            place = at((table if in_place else target)[b], j)
            assert slots[b, j] == place[0] * size + place[1]
            assert_same_bytes(token(*place), value)
    for page, value in others.items():
        assert_same_bytes(token(page, 0), value)


def test_memory_between_the_views_is_not_touched(backend):
    base = paged.pool(12, 9, 5, 20, dtype=torch.int16)
    before = base.clone()
    view = base[:, 1:5, ::2, 3:19:2]
    testing.run(COMPACT, backend, [view], TABLE, LENGTHS, KEPT)
    assert not torch.equal(base, before)
    view.copy_(before[:, 1:5, ::2, 3:19:2])
    assert torch.equal(base, before)


def test_out_buffers_with_longer_rows(backend):
    want = testing.run(COMPACT, backend, [paged.pool(12, 4, 2, 8)], TABLE, LENGTHS, KEPT)
    slots, freed = torch.full((2, 9), -7), torch.full((2, 6), -7, dtype=torch.int32)
    lengths = torch.full((2,), -7, dtype=torch.int32)
    testing.run(f"{COMPACT}.out", backend, [paged.pool(12, 4, 2, 8)], TABLE, LENGTHS, KEPT, out_seq_lens=lengths,
                out_slot_mapping=slots[:, 2:6], out_freed_blocks=freed[:, 1:5])
    assert_same_bytes((lengths, slots[:, 2:6], freed[:, 1:5]), want)
    assert (slots[:, [0, 1, 6, 7, 8]] == -7).all()
    assert (freed[:, [0, 5]] == -7).all()


def test_a_bad_row_does_not_hold_up_the_others(backend):
    pool = paged.pool(12, 4, 2, 8)
    alone = pool.clone()
    status = torch.zeros(1, dtype=torch.int32)
    lengths = ints(14, 99)
    outs = run_out(COMPACT, backend, Sample("", ([pool], TABLE, lengths, KEPT), {}), status=status)
    testing.run(COMPACT, backend, [alone], TABLE[:1], LENGTHS[:1], KEPT[:1])
    assert_same_bytes(pool, alone)
    assert outs[0].tolist() == [4, 99]
    assert outs[1][1].tolist() == [-1] * 4
    assert status.item() == _library.STATUS_BAD_SEQLENS


def test_compacting_twice_changes_nothing_more(backend):
    pool = paged.pool(12, 4, 2, 8)
    lengths, slots, _ = testing.run(COMPACT, backend, [pool], TABLE, LENGTHS, KEPT)
    once = pool.clone()
    again = testing.run(COMPACT, backend, [pool], TABLE, lengths, torch.arange(4).expand(2, 4), counts=lengths)
    assert_same_bytes(pool, once)
    assert_same_bytes(again[:2], (lengths, slots))
    assert (again[2] == -1).all()


@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_watermark(backend, first):
    for seed in range(first, first + 250):
        check_watermark(backend, seed)


def check_watermark(backend, seed):
    call = testing.watermark_call(seed)
    before = [testing.bytes_of(t).copy() for t in call.args[0]]
    outputs = testing.run(COMPACT, backend, *call.args, **call.kwargs)
    testing.assert_watermark(call, before, outputs)


def test_the_watermark_calls_are_hostile_and_not_hopeless():
    """Of a thousand calls each status bit comes up in many, and many move tokens."""
    results = [paged.compact_result(*call.args, **call.kwargs) for call in map(testing.watermark_call, range(1000))]
    for bit in (_library.STATUS_BAD_INDEX, _library.STATUS_BAD_SEQLENS, _library.STATUS_BAD_PAGE,
                _library.STATUS_SHARED_PAGE):
        assert sum(bool(r.status & bit) for r in results) > 50
    assert sum(any(a != b for a, b in r.moves) for r in results) > 300


POOL, FRESH = paged.pool(12, 4, 2, 8, dtype=torch.int16), ints([5], [6])
TOKENS = (testing.rand(10, 8), testing.rand(3, 8), ints(0, 5, 10), ints(2, 3), 5)


@pytest.mark.parametrize(("args", "kwargs", "arg", "got"), [
    (([], TABLE, LENGTHS, KEPT), {}, "kv", "empty"),
    (([POOL[0]], TABLE, LENGTHS, KEPT), {}, "kv[0]", "(4, 2, 8)"),
    (([POOL, POOL.clone()[:11]], TABLE, LENGTHS, KEPT), {}, "kv[1]", "11"),
    (([POOL, POOL.clone()[:, :3]], TABLE, LENGTHS, KEPT), {}, "kv[1]", "3"),
    (([POOL[:, :0]], TABLE, LENGTHS, KEPT), {}, "kv[0]", "(12, 0, 2, 8)"),
    (([POOL[:, :, :1].expand(12, 4, 3, 8)], TABLE, LENGTHS, KEPT), {}, "kv[0]", "expanded"),
    (([POOL], TABLE.long(), LENGTHS, KEPT), {}, "block_table", "int64"),
    (([POOL], TABLE[0], LENGTHS, KEPT), {}, "block_table", "(4,)"),
    (([POOL], TABLE, LENGTHS[:1], KEPT), {}, "seq_lens", "1"),
    (([POOL], TABLE, LENGTHS.long(), KEPT), {}, "seq_lens", "int64"),
    (([POOL], TABLE, LENGTHS, KEPT.float()), {}, "indices", "float32"),
    (([POOL], TABLE, LENGTHS, KEPT[:1]), {}, "indices", "1"),
    (([POOL], TABLE, LENGTHS, KEPT), {"counts": ints(1)}, "counts", "1"),
    (([POOL], TABLE, LENGTHS, KEPT), {"counts": LENGTHS.long()}, "counts", "int64"),
    (([POOL], TABLE, LENGTHS, KEPT), {"dst_block_table": FRESH[:1]}, "dst_block_table", "1"),
    (([POOL], TABLE, LENGTHS, KEPT), {"kv_layout": "HDN"}, "kv_layout", "'HDN'"),
    (([POOL], TABLE, LENGTHS, KEPT), {"allow_shared": True}, "allow_shared", ""),
])
def test_bad_arguments(backend, args, kwargs, arg, got):
    before = POOL.clone()
    assert_refused(COMPACT, backend, args, kwargs, arg, got)
    assert torch.equal(POOL, before)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_pool_given_twice_is_refused(backend):
    assert_refused(COMPACT, backend, ([POOL, POOL], TABLE, LENGTHS, KEPT), {}, "kv[1]", "kv[0]")


@pytest.mark.parametrize(("args", "kwargs", "arg", "got"), [
    ((*TOKENS, [POOL], TABLE[:1], LENGTHS), {}, "block_table", "1"),
    ((*TOKENS, [POOL], TABLE, LENGTHS), {"context_lens": ints(1)}, "context_lens", "1"),
    ((*TOKENS, [POOL], TABLE, LENGTHS), {"span_starts": ints(0, 0)}, "span_starts, span_lens", "only one"),
    ((*TOKENS[:4], 11, [POOL], TABLE, LENGTHS), {}, "total_out", "11"),
    ((TOKENS[0].double(), *TOKENS[1:], [POOL], TABLE, LENGTHS), {}, "hidden", "float64"),
    ((*TOKENS, [], TABLE, LENGTHS), {}, "kv", "empty"),
])
def test_bad_arguments_of_prune(backend, args, kwargs, arg, got):
    assert_refused(PRUNE, backend, args, kwargs, arg, got)
