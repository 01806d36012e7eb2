"""gather_tokens and gather_kv on the backends of the CPU: exact bytes."""

import pytest
import torch
from helpers import assert_contract, assert_same_bytes, run_out

import vtkernels
from vtkernels import _library, testing

CASES = [pytest.param(op, s, id=f"{op}-{s.name}") for op in ("gather_tokens", "gather_kv") for s in testing.SAMPLES[op]()]


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
    indices = sample.args[1]
    dim = (sample.kwargs.get("token_dims") or [1])[0] if op == "gather_tokens" else (
        2 if sample.kwargs.get("kv_layout", "HND") == "HND" else 1)
    bad = ((indices < 0) | (indices >= sample.args[0][0].shape[dim])).any()
    assert status.item() == (_library.STATUS_BAD_INDEX if bad else 0)


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


@pytest.mark.parametrize("op", ["gather_tokens", "gather_kv"])
def test_gradients_are_those_of_indexing(op):
    x = testing.rand(2, 3, 6, 4).double().requires_grad_()
    idx = torch.tensor([[0, 5, 5], [2, 1, 0]])
    run = (lambda t: vtkernels.gather_kv([t], idx)[0]) if op == "gather_kv" else (
        lambda t: vtkernels.gather_tokens([t.transpose(1, 2)], idx)[0].transpose(1, 2))
    assert torch.equal(run(x), torch.stack([x[b][:, idx[b]] for b in range(2)]))
    assert torch.autograd.gradcheck(run, (x,))
