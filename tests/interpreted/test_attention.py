"""The Triton kernels of the attention scores in the interpreter, against float64."""

import pytest
import torch
from helpers import assert_same_bytes, run_out

from vtkernels import _triton, testing
from vtkernels.score.attention_scores._row_sums import row_sums_kernel
from vtkernels.score.attention_scores._scores import combine_heads_kernel
from vtkernels.score.attention_scores.triton import attention_scores_out
from vtkernels.score.attention_scores_varlen.triton import attention_scores_varlen_out
from vtkernels.testing.attention import oracle_attention_varlen
from vtkernels.tuning import lookup

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, of the hostile samples
DENSE, VARLEN = "attention_scores", "attention_scores_varlen"
# Several tiles of everything, the width in blocks, several splits of keys.
SMALL = {"block_k": 16, "block_r": 16, "block_d": 16, "split_keys": 32, "num_warps": 4, "num_stages": 1}


@pytest.fixture
def launches(monkeypatch):
    kernels, launch = [], _triton.launch
    monkeypatch.setattr(_triton, "launch", lambda kernel, *args, **options: (
        kernels.append(kernel), launch(kernel, *args, **options)))
    return kernels


@pytest.mark.parametrize("sample", list(testing.SAMPLES[DENSE]()), ids=lambda s: s.name)
def test_dense(launches, sample):
    (scores,) = run_out(DENSE, "triton", sample)
    assert launches or scores.numel() == 0, "no kernel was launched"
    testing.assert_attention_scores(scores, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("sample", list(testing.SAMPLES[VARLEN]()), ids=lambda s: s.name)
def test_varlen(launches, sample):
    status = torch.tensor([64], dtype=torch.int32)
    (scores,) = run_out(VARLEN, "triton", sample, status=status)
    assert launches, "no kernel was launched"
    testing.assert_attention_scores_varlen(scores, *sample.args, **sample.kwargs)
    assert status.item() == 64 | oracle_attention_varlen(*sample.args, **sample.kwargs)[2]


TILES = [testing.Sample("sum-of-all", (testing.rand(1, 4, 12, 20), testing.rand(1, 2, 70, 20, seed=1)), {}),
         testing.Sample("each-head", (testing.rand(1, 2, 20, 24), testing.rand(1, 1, 70, 24, seed=1)), {
             "reduce_heads": "none", "causal": True})]


@pytest.mark.parametrize(("op", "sample"), [
    *(pytest.param(DENSE, s, id=s.name) for s in TILES),
    *(pytest.param(op, s, id=f"{op}-{s.name}") for op in (DENSE, VARLEN) for s in testing.SAMPLES[op]()
      if s.name in ("float32-max-max", "float32-lse-causal-max", "float32-paged", "bad-keys-84", "minus-infinity"))])
def test_many_tiles(launches, monkeypatch, op, sample):
    monkeypatch.setattr(lookup, "config", lambda *args, **shape: SMALL)
    (scores,) = run_out(op, "triton", sample)
    assert launches
    testing.CHECKS[op](scores, *sample.args, **sample.kwargs)


@pytest.mark.parametrize(("rows", "heads"), [("mean", "mean"), ("max", "sum"), ("max", "max")])
def test_the_split_over_heads_does_not_change_the_scores(launches, rows, heads):
    options = {"reduce_rows": rows, "reduce_heads": heads}
    q, k = testing.rand(2, 6, 5, 16), testing.rand(2, 3, 70, 16, seed=1)
    packed_q, packed_k = q[0].transpose(0, 1).contiguous(), k[0].transpose(0, 1).contiguous()
    cu_q, cu_k = torch.tensor([0, 2, 4], dtype=torch.int32), torch.tensor([0, 22, 66], dtype=torch.int32)
    dense, packed = [], []
    for parts in (1, 3):
        launches.clear()
        dense.append(torch.full((2, 70), 7.0))
        attention_scores_out(q, k, **options, out=dense[-1], _parts=parts)
        assert (combine_heads_kernel in launches) == (parts > 1)
        packed.append(torch.full((70,), 7.0))
        attention_scores_varlen_out(packed_q, packed_k, cu_q, cu_k, 70, 2, 44, **options, out=packed[-1],
                                    _parts=parts)
    assert_same_bytes(dense[0], dense[1])
    assert_same_bytes(packed[0], packed[1])
    assert packed[0][66:].isnan().all()


def test_given_denominators_need_one_launch_for_each_key_head_alone(launches):
    q, k = testing.rand(1, 2, 5, 16), testing.rand(1, 1, 40, 16, seed=1)
    testing.run(DENSE, "triton", q, k, lse=torch.zeros(1, 2, 5))
    assert len(launches) == 1
    testing.run(DENSE, "triton", q, k)
    assert row_sums_kernel in launches


def test_a_batch_entry_does_not_depend_on_its_neighbours():
    q, k = testing.rand(3, 4, 5, 16), testing.rand(3, 2, 130, 16, seed=1)
    both = testing.run(DENSE, "triton", q, k)
    for b in range(3):
        assert_same_bytes(testing.run(DENSE, "triton", q[b:b + 1], k[b:b + 1]), both[b:b + 1])
