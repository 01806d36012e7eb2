"""prune_topk_varlen on the backends of the CPU: packed rows equal dense rows, and hostile metadata is defined."""

import pytest
import torch
from helpers import assert_contract, assert_same_bytes, run_out, samples

import vtkernels
from vtkernels import testing

OP = "prune_topk_varlen"


def assert_close_to_reference(outputs, sample):
    """Everything but the scores exactly; the scores by the oracle, with NaN in the same places."""
    hidden, kv, indices, scores, cu = outputs
    want = testing.run(OP, "reference", *sample.args, **sample.kwargs)
    assert_same_bytes((hidden, kv, indices, cu), (want[0], want[1], want[2], want[4]))
    assert torch.equal(scores.isnan(), want[3].isnan())
    scored = ~want[3].isnan()
    testing.assert_scores(scores[scored], sample.args[0][scored], sample.args[1])


@samples(OP)
def test_against_the_reference(backend, sample):
    outputs = testing.run(OP, backend, *sample.args, **sample.kwargs)
    assert_contract(OP, outputs, sample)
    assert_close_to_reference(outputs, sample)


@samples(OP)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_out_variant_and_status(backend, sample, index_dtype):
    want_status = torch.zeros(1, dtype=torch.int32)
    run_out(OP, "reference", sample, index_dtype, status=want_status)
    status = torch.zeros(1, dtype=torch.int32)
    workspace = torch.zeros(vtkernels.workspace_size(len(sample.args[3])), dtype=torch.int32)
    outs = run_out(OP, backend, sample, index_dtype, workspace=workspace, status=status)
    functional = testing.run(OP, backend, *sample.args, **sample.kwargs)
    assert_same_bytes(outs, (*functional[:2], functional[2].to(index_dtype), *functional[3:]))
    assert status.item() == want_status.item()
    expected = {"hostile-metadata": 2 | 4 | 8, "truncated": 8, "decreasing": 4}
    assert status.item() == next((v for name, v in expected.items() if name in sample.name), 0)


def test_packed_equals_dense(backend):
    lengths, keep, starts, spans = [40, 1, 77], [9, 1, 20], [3, 0, 10], [30, 1, 50]
    protos = testing.clustered(11, 48, seed=4)
    rows = [testing.clustered(n, 48, seed=n) for n in lengths]
    caches = [testing.rand(2, n, 8, seed=n) for n in lengths]
    packed = testing.run(OP, backend, torch.cat(rows), protos, torch.tensor([0, 40, 41, 118], dtype=torch.int32),
                         torch.tensor(keep, dtype=torch.int32), sum(lengths) - sum(spans) + sum(keep),
                         [torch.cat(caches, 1)], span_starts=torch.tensor(starts, dtype=torch.int32),
                         span_lens=torch.tensor(spans, dtype=torch.int32))
    cu = packed[4].tolist()
    begin = 0
    for i, n in enumerate(lengths):
        dense = testing.run("prune_topk", backend, rows[i][None], protos, keep[i], [caches[i][None]],
                            span_start=starts[i], span_len=spans[i])
        assert_same_bytes(packed[0][cu[i]:cu[i + 1]], dense[0][0])
        assert_same_bytes(packed[1][0][:, cu[i]:cu[i + 1]], dense[1][0][0])
        assert (packed[2][cu[i]:cu[i + 1]] - begin).tolist() == dense[2][0].tolist()
        begin += n


def test_lists_and_tensors_agree():
    hidden, protos = testing.clustered(118, 48), testing.clustered(11, 48, seed=4)
    lists = vtkernels.prune_topk_varlen(hidden, protos, [0, 40, 41, 118], [9, 1, 20], span_starts=[3, 0, 10],
                                        span_lens=[30, 1, 50])
    ints = [torch.tensor(v, dtype=torch.int32) for v in ([0, 40, 41, 118], [9, 1, 20], [3, 0, 10], [30, 1, 50])]
    tensors = vtkernels.prune_topk_varlen(hidden, protos, ints[0], ints[1], 67, span_starts=ints[2], span_lens=ints[3])
    assert_same_bytes(tensors, lists)


@pytest.mark.parametrize(("message", "args", "kwargs"), [
    ("`cu_seqlens` is of length 2", ([0, 9], [1, 1]), {}),
    ("`cu_seqlens` is \\[1, 9\\]", ([1, 9], [1]), {}),
    ("`cu_seqlens` is \\[0, 99\\]", ([0, 99], [1]), {}),
    ("`k\\[0\\]` is 10", ([0, 9], [10]), {}),
    ("`k\\[0\\]` is -1", ([0, 9], [-1]), {}),
    ("`span_starts\\[0\\], span_lens\\[0\\]` is \\(5, 5\\)", ([0, 9], [1]), {"span_starts": [5], "span_lens": [5]}),
    ("only one of them", ([0, 9], [1]), {"span_starts": [5]}),
    ("`span_lens` is of length 2", ([0, 9], [1]), {"span_starts": [5], "span_lens": [1, 1]}),
    ("`total_out` is 0", ([0, 9], [1], 0), {}),
    ("`total_out` is None", ([0, 9], torch.ones(1, dtype=torch.int32)), {}),
])
def test_bad_lists(message, args, kwargs):
    with pytest.raises(ValueError, match=message):
        vtkernels.prune_topk_varlen(testing.rand(9, 4), testing.rand(2, 4), *args, **kwargs)
