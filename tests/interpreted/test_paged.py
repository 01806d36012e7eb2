"""compact_kv_paged and prune_topk_paged in the interpreter."""

import copy

import pytest
import torch
from helpers import run_out, samples

import vtkernels
from vtkernels import _library, _triton, testing
from vtkernels.compact.compact_kv_paged.triton import claim_kernel, move_kernel, plan_kernel
from vtkernels.testing import Sample, paged

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def launches(monkeypatch):
    found = []
    launch = _triton.launch

    def recorded(*args, **options):
        found.append(args[0])
        launch(*args, **options)

    monkeypatch.setattr(_triton, "launch", recorded)
    return found


def run(op, sample, index_dtype=torch.int64, **extra):
    args, kwargs = copy.deepcopy((sample.args, sample.kwargs))
    before = [testing.bytes_of(t).copy() for t in next(a for a in args if isinstance(a, list))]
    outs = run_out(op, "triton", Sample(sample.name, args, kwargs), index_dtype, **extra)
    testing.CHECKS[op](outs, *args, before=before, **kwargs)
    return outs, args, kwargs


@samples("compact_kv_paged")
def test_compact(sample, launches):
    status = torch.zeros(1, dtype=torch.int32)
    dtype = torch.int32 if len(sample.name) % 2 else torch.int64
    run("compact_kv_paged", sample, dtype, status=status)
    assert status.item() == paged.compact_result(*sample.args, **sample.kwargs).status
    rows, bytes_ = len(sample.args[1]), sample.args[0][0].numel()
    assert launches[:3] == [claim_kernel, plan_kernel, move_kernel][:0 if not rows else 3 if bytes_ else 2]


@pytest.mark.parametrize("in_place", [True, False])
def test_rows_longer_than_a_block(launches, monkeypatch, in_place):
    """More kept tokens than one block plans or one chunk moves, more pools than a launch has parameters for."""
    monkeypatch.setattr(_triton, "PARAMETER_WORDS", 64 + 11 + 2)
    pools = [paged.pool(700, 4, 1, 1, seed=s) for s in range(3)]
    table = torch.randperm(700, generator=torch.Generator().manual_seed(1)).int()[None]
    kept = torch.arange(1600)[torch.arange(1600) % 7 > 1][None]
    dst = {} if in_place else {"dst_block_table": table[:, 400:]}
    run("compact_kv_paged", Sample("", (pools, table, paged.ints(1600), kept), dst))
    assert launches.count(move_kernel) == 2


def test_watermark(launches):
    for seed in range(40):
        call = testing.watermark_call(seed)
        before = [testing.bytes_of(t).copy() for t in call.args[0]]
        testing.assert_watermark(call, before, testing.run("compact_kv_paged", "triton", *call.args, **call.kwargs))
    assert launches.count(plan_kernel) == 40


@samples("prune_topk_paged")
def test_prune(sample, launches):
    status = torch.zeros(1, dtype=torch.int32)
    workspace = torch.zeros(vtkernels.workspace_size(len(sample.args[3])), dtype=torch.int32)
    run("prune_topk_paged", sample, status=status, workspace=workspace)
    assert not workspace.any()
    assert (move_kernel in launches) == (len(sample.args[3]) > 0)
    expected = torch.zeros(1, dtype=torch.int32)
    outs = _library.allocate(_library.CONTRACTS["prune_topk_paged"](*sample.args, **sample.kwargs))
    testing.run("prune_topk_paged.out", "reference", *copy.deepcopy(sample.args), **sample.kwargs, status=expected,
                **dict(zip(_library.OUT_ARGS["prune_topk_paged"], outs, strict=True)))
    assert status.item() == expected.item()


def test_a_pool_given_twice_is_refused():
    pool = paged.pool(12, 4, 2, 8)
    with pytest.raises(ValueError, match="compact_kv_paged: `kv` is a list with the same memory twice"):
        testing.run("compact_kv_paged", "triton", [pool, pool.view(12, 4, 2, 8)], paged.ints([4]), paged.ints(3),
                    torch.tensor([[1]]))
