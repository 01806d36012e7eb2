"""select_topk_varlen and select_quota on the backends of the CPU: exact positions and status bits."""

import pytest
import torch
from helpers import assert_contract, assert_refused, run_out, samples

import vtkernels
from vtkernels import testing

VARLEN, QUOTA = "select_topk_varlen", "select_quota"
SCORES = testing.rand(20)
CU, K = torch.tensor([0, 9, 20], dtype=torch.int32), torch.tensor([3, 4], dtype=torch.int32)


@samples(VARLEN)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_varlen(backend, sample, index_dtype):
    outs = testing.run(VARLEN, backend, *sample.args, **sample.kwargs)
    assert_contract(VARLEN, outs, sample)
    testing.CHECKS[VARLEN](outs, *sample.args, **sample.kwargs)
    status = torch.tensor([64], dtype=torch.int32)
    given = run_out(VARLEN, backend, sample, index_dtype, status=status)
    testing.CHECKS[VARLEN](given, *sample.args, **sample.kwargs)
    assert status.item() == 64 | testing.oracle_topk_varlen(*sample.args, **sample.kwargs)[2]


@samples(QUOTA)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_quota(backend, sample, index_dtype):
    out = testing.run(QUOTA, backend, *sample.args, **sample.kwargs)
    assert_contract(QUOTA, out, sample)
    testing.CHECKS[QUOTA](out, *sample.args, **sample.kwargs)
    status = torch.tensor([64], dtype=torch.int32)
    (given,) = run_out(QUOTA, backend, sample, index_dtype, status=status)
    assert torch.equal(given.long(), out)
    assert status.item() == 64 | testing.oracle_quota(*sample.args, **sample.kwargs)[1]


def test_lists_give_the_exact_length():
    indices, cu = vtkernels.select_topk_varlen(SCORES, [0, 9, 20], [3, 4])
    assert cu.tolist() == [0, 3, 7]
    assert torch.equal(indices, vtkernels.select_topk_varlen(SCORES, CU, K, 7)[0])


@pytest.mark.parametrize(("args", "arg"), [
    (([0, 9], [3, 4]), "cu_seqlens"), (([0, 9, 21], [3, 4]), "cu_seqlens"), (([0, 9, 3], [3, 0]), "cu_seqlens"),
    (([0, 9, 20], [3, 12]), r"k\[1\]"), (([0, 9, 20], [3, 4], 6), "total_out"), (([0, 9, 20], K), "total_out")])
def test_bad_lists(args, arg):
    with pytest.raises(ValueError, match=f"select_topk_varlen: `{arg}` is .*, allowed: "):
        vtkernels.select_topk_varlen(SCORES, *args)


@pytest.mark.parametrize(("args", "kwargs", "arg", "got"), [
    ((SCORES[None], CU, K, 7), {}, "scores", "(1, 20)"),
    ((SCORES, CU[:2], K, 7), {}, "cu_seqlens", "2"),
    ((SCORES, CU, K.long(), 7), {}, "k", "int64"),
    ((SCORES, CU, K, 21), {}, "total_out", "21"),
    ((SCORES, CU, K, 7), {"protected": torch.zeros(19, dtype=torch.bool)}, "protected", "(19,)"),
    ((SCORES, CU, K, 7), {"order": "best"}, "order", "'best'"),
])
def test_varlen_refuses(backend, args, kwargs, arg, got):
    assert_refused(VARLEN, backend, args, kwargs, arg, got)


@pytest.mark.parametrize(("args", "kwargs", "arg", "got"), [
    ((SCORES, CU, 7, 1), {}, "scores", "(20,)"),
    ((SCORES[None], CU.long(), 7, 1), {}, "cu_segments", "int64"),
    ((SCORES[None], CU[:0], 7, 1), {}, "cu_segments", "0"),
    ((SCORES[None], CU, 21, 1), {}, "k", "21"),
    ((SCORES[None], CU, 7, 4), {}, "quota", "4"),
    ((SCORES[None], CU, 7, 1), {"excluded": torch.zeros(1, 20)}, "excluded", "float32"),
    ((SCORES[None], CU, 7, 1), {"order": "best"}, "order", "'best'"),
])
def test_quota_refuses(backend, args, kwargs, arg, got):
    assert_refused(QUOTA, backend, args, kwargs, arg, got)


def test_a_segment_and_a_row_do_not_depend_on_their_neighbours(backend):
    scores = (testing.rand(3, 100) * 5).round()
    cu, k = torch.tensor([0, 100, 200, 300], dtype=torch.int32), torch.tensor([30, 1, 99], dtype=torch.int32)
    indices, ends = testing.run(VARLEN, backend, scores.flatten(), cu, k, 130)
    frames = torch.tensor([0, 50, 90], dtype=torch.int32)
    quotas = testing.run(QUOTA, backend, scores, frames, 40, 15)
    for b in range(3):
        (alone,) = testing.run("select_topk", backend, scores[b:b + 1], int(k[b]))
        assert torch.equal(indices[ends[b]:ends[b + 1]] - 100 * b, alone)
        assert torch.equal(quotas[b:b + 1], testing.run(QUOTA, backend, scores[b:b + 1], frames, 40, 15))
