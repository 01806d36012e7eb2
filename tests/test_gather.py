"""gather_tokens, gather_kv and gather_kv_inplace on the backends of the CPU: exact bytes."""

import pytest
import torch
from helpers import assert_contract, assert_refused, assert_same_bytes, gather_status, run_out, samples

import vtkernels
from vtkernels import _library, testing

CASES = [pytest.param(op, s, id=f"{op}-{s.name}") for op in ("gather_tokens", "gather_kv")
         for s in testing.SAMPLES[op]()]


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_bytes(backend, op, sample):
    outs = testing.run(op, backend, *sample.args, **sample.kwargs)
    assert_contract(op, outs, sample)
    testing.CHECKS[op](outs, *sample.args, **sample.kwargs)


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_out_variant_and_status(backend, op, sample):
    status = torch.zeros(1, dtype=torch.int32)
    (outs,) = run_out(op, backend, sample, status=status)
    testing.CHECKS[op](outs, *sample.args, **sample.kwargs)
    assert status.item() == gather_status(op, sample)


def test_status_bits_accumulate(backend):
    status = torch.tensor([64], dtype=torch.int32)
    sample = testing.Sample("bad", ([testing.rand(1, 3, 4)], torch.tensor([[3]])), {})
    run_out("gather_tokens", backend, sample, status=status)
    assert status.item() == 64 | _library.STATUS_BAD_INDEX


def test_out_may_be_strided(backend):
    x, idx = testing.rand(2, 20, 8), torch.tensor([[1, 5], [0, 19]])
    buffer = torch.zeros(2, 7, 12)
    testing.run("gather_tokens.out", backend, [x], idx, out=[buffer[:, 3:5, 2:10]])
    assert_same_bytes(buffer[:, 3:5, 2:10], torch.stack([x[0, [1, 5]], x[1, [0, 19]]]))
    assert buffer.count_nonzero() == 2 * 2 * 8


def test_large_rows_use_every_thread(backend):
    kv = [testing.rand(2, 4, 3000, 64, seed=s) for s in range(2)]
    idx = torch.stack([torch.arange(0, 3000, 2), torch.arange(1, 3000, 2)])
    outs = testing.run("gather_kv", backend, kv, idx)
    for out, cache in zip(outs, kv, strict=True):
        assert_same_bytes(out, torch.stack([cache[b][:, idx[b]] for b in range(2)]))


@pytest.mark.parametrize("offset", [0, 4, 16])
def test_outputs_beyond_the_caches(backend, offset):
    """Rows of each head, more of them than the caches hold, at several alignments."""
    cache = torch.arange(4 * 40000 * 64, dtype=torch.float32).view(1, 4, 40000, 64)
    idx = torch.stack([torch.arange(h, 40000, 1 + h)[:10000] for h in range(4)])
    idx[2, 77] = -1
    buffer = torch.empty(4 * 10000 * 64 + 64)
    start = -buffer.data_ptr() % 64 // 4 + offset // 4
    out = buffer[start:start + 4 * 10000 * 64].view(1, 4, 10000, 64)
    other = torch.empty_like(out)
    testing.run("gather_kv.out", backend, [cache, cache], idx[None], out=[out, other])
    want = torch.stack([cache[0, h, idx[h]] for h in range(4)])
    want[2, 77] = 0
    assert_same_bytes([out[0], other[0]], [want, want])


@samples("gather_kv_inplace")
def test_in_place_moves_the_kept_tokens_and_nothing_else(backend, sample):
    (kv, indices), status = sample.args, torch.zeros(1, dtype=torch.int32)
    changed = [testing.copied(t) for t in kv]
    assert testing.run("gather_kv_inplace", backend, changed, indices, **sample.kwargs) is None
    testing.assert_gather_kv_inplace(changed, kv, indices, **sample.kwargs)
    again = [testing.copied(t) for t in kv]
    run_out("gather_kv_inplace", backend, sample._replace(args=(again, indices)), status=status)
    testing.assert_gather_kv_inplace(again, kv, indices, **sample.kwargs)
    assert status.item() == gather_status("gather_kv_inplace", sample)


def test_in_place_front_returns_views(backend, monkeypatch):
    kv = [testing.rand(2, 30, 3, 8), testing.rand(2, 30, 1, 4)]
    kept = torch.arange(1, 30, 2).expand(2, 15)
    want = testing.run("gather_kv", backend, kv, kept, kv_layout="NHD")
    views = vtkernels.gather_kv_inplace(kv, kept, kv_layout="NHD")
    assert_same_bytes(views, want)
    assert [v.data_ptr() for v in views] == [t.data_ptr() for t in kv]


def test_a_row_of_the_batch_does_not_depend_on_its_neighbours(backend):
    kv, idx = testing.rand(3, 4, 50, 16), torch.rand(3, 4, 50).argsort(-1)[..., :20].sort(-1).values
    (both,) = testing.run("gather_kv", backend, [kv], idx)
    (alone,) = testing.run("gather_kv", backend, [kv[1:2]], idx[1:2])
    assert_same_bytes(both[1:2], alone)


KV, IDX = testing.rand(2, 3, 20, 4), torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize("op", ["gather_kv", "gather_kv_inplace"])
@pytest.mark.parametrize(("args", "kwargs", "arg", "got"), [
    (([KV], IDX[0]), {}, "indices", "(3,)"),
    (([KV], IDX[None, None, None]), {}, "indices", "(1, 1, 1, 2, 3)"),
    (([KV], torch.zeros(2, 2, 5).int()), {}, "indices", "2 in H"),
    (([KV, KV[:, :2]], torch.zeros(2, 3, 5).int()), {}, "indices", "3 in H"),
    (([KV.transpose(1, 2)], torch.zeros(2, 20, 3).int()), {"kv_layout": "NHD"}, "indices", "20 in H"),
    (([KV], torch.zeros(3, 3, 5).int()), {}, "indices", "3 in B"),
    (([KV], torch.zeros(2, 2, 3, 5).int()), {}, "indices", "2 in L"),
    (([KV, KV + 1], torch.zeros(2, 1, 3, 5).int()), {}, "indices", "1 in B"),
    (([KV], IDX[None, None].float()), {}, "indices", "float32"),
])
def test_indices_of_other_ranks_are_checked(backend, op, args, kwargs, arg, got):
    assert_refused(op, backend, args, kwargs, arg, got)


@pytest.mark.parametrize(("args", "arg", "got"), [
    (([KV], torch.zeros(2, 21).int()), "indices", "21 in k"),
    (([KV[:1].expand(2, 3, 20, 4)], IDX), "kv[0]", "expanded"),
    (([KV[..., :1].expand(2, 3, 20, 4)], IDX), "kv[0]", "expanded"),
    (([KV, KV], IDX), "kv[1]", "kv[0]"),
])
def test_caches_that_cannot_be_changed_are_refused(backend, args, arg, got):
    before = KV.clone()
    assert_refused("gather_kv_inplace", backend, args, {}, arg, got)
    assert_same_bytes(KV, before)


def test_in_place_refuses_a_gradient():
    with pytest.raises(RuntimeError, match="`kv` requires a gradient, which this op does not have"):
        vtkernels.gather_kv_inplace([KV.clone().requires_grad_()], IDX)


@pytest.mark.parametrize("op", ["gather_tokens", "gather_kv"])
def test_gradients_are_those_of_indexing(op):
    x = testing.rand(2, 3, 6, 4).double().requires_grad_()
    idx = torch.tensor([[0, 5, 5], [2, 1, 0]])
    run = (lambda t: vtkernels.gather_kv([t], idx)[0]) if op == "gather_kv" else (
        lambda t: vtkernels.gather_tokens([t.transpose(1, 2)], idx)[0].transpose(1, 2))
    assert torch.equal(run(x), torch.stack([x[b][:, idx[b]] for b in range(2)]))
    assert torch.autograd.gradcheck(run, (x,))


@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("lead", [(2, 3), (2, 1), (2, 2, 3), (2, 2, 1)])
def test_gradients_of_indices_for_each_head(layout, lead):
    idx = torch.randint(-1, 7, (*lead, 4), generator=torch.Generator().manual_seed(0))
    x, y = (testing.rand(2, 3, 6, 2, seed=s).double().requires_grad_() for s in range(2))

    def ours(*kv):
        moved = kv if layout == "HND" else [t.transpose(1, 2) for t in kv]
        outs = vtkernels.gather_kv(moved, idx, kv_layout=layout)
        return tuple(outs) if layout == "HND" else tuple(t.transpose(1, 2) for t in outs)

    for i, (out, t) in enumerate(zip(ours(x, y), (x, y), strict=True)):
        own = (idx[i] if len(lead) == 3 else idx).expand(2, 3, 4)
        rows = t.gather(2, own.clamp(0, 5)[..., None].expand(2, 3, 4, 2))
        assert torch.equal(out, rows * ((own >= 0) & (own < 6))[..., None])
    assert torch.autograd.gradcheck(ours, (x, y))


@pytest.mark.parametrize("op", ["gather_tokens", "gather_kv"])
def test_threads_share_rows_of_one_list(op):
    """Parts of threads begin and end within the rows that one list of indices moves."""
    tokens, heads = 3001, 3
    source = testing.rand(1, tokens, 64) if op == "gather_tokens" else testing.rand(1, heads, tokens, 64)
    indices = torch.randperm(tokens, generator=torch.Generator().manual_seed(1))[:1777][None]
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        (got,) = testing.run(op, "cpu", [source], indices)
    finally:
        torch.set_num_threads(before)
    assert_same_bytes(got, source.index_select(source.dim() - 2, indices[0]))
