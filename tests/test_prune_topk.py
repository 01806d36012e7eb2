"""prune_topk on the backends of the CPU."""

import pytest
import torch
from helpers import assert_contract, assert_same_bytes, run_out, samples

import vtkernels
from vtkernels import _library, testing
from vtkernels.score.prototype_scores.reference import reciprocal_norms

OP = "prune_topk"


@samples(OP)
def test_against_the_oracles(backend, sample):
    outputs = testing.run(OP, backend, *sample.args, **sample.kwargs)
    assert_contract(OP, outputs, sample)
    testing.assert_prune_topk(outputs, *sample.args, **sample.kwargs)


@samples(OP)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_out_variant_equals_functional(backend, sample, index_dtype):
    hidden, kv, indices, scores = testing.run(OP, backend, *sample.args, **sample.kwargs)
    status = torch.zeros(1, dtype=torch.int32)
    workspace = torch.zeros(vtkernels.workspace_size(hidden.shape[0]), dtype=torch.int32)
    outs = run_out(OP, backend, sample, index_dtype, workspace=workspace, status=status)
    assert_same_bytes(outs, (hidden, kv, indices.to(index_dtype), scores))
    assert not workspace.any()
    assert status.item() == (_library.STATUS_BAD_SPAN if "bad-span" in sample.name else 0)


def test_rows_do_not_depend_on_the_batch(backend):
    if backend == "reference":
        pytest.skip("the reference multiplies through torch, whose blocking depends on the batch")
    hidden, protos = testing.clustered(5 * 130, 70).view(5, 130, 70), testing.clustered(40, 70, seed=8)
    cache = testing.rand(5, 3, 130, 16)
    together = testing.run(OP, backend, hidden, protos, 33, [cache])
    for b in range(5):
        alone = testing.run(OP, backend, hidden[b:b + 1], protos, 33, [cache[b:b + 1]])
        assert_same_bytes(alone, (together[0][b:b + 1], [together[1][0][b:b + 1]], together[2][b:b + 1],
                                  together[3][b:b + 1]))


def test_a_poisoned_row_changes_no_other_row(backend):
    hidden, protos = testing.clustered(3 * 50, 40).view(3, 50, 40).clone(), testing.clustered(10, 40, seed=8)
    before = testing.run(OP, backend, hidden, protos, 9)
    hidden[1] = torch.nan
    after = testing.run(OP, backend, hidden, protos, 9)
    for b in (0, 2):
        assert_same_bytes([t[b] for t in (after[0], *after[2:])], [t[b] for t in (before[0], *before[2:])])
    assert after[2][1].tolist() == list(range(9))


def test_real_codebook(backend, real_codebook):
    tokens = real_codebook[torch.arange(300) % 45] + 0.5 * testing.rand(300, real_codebook.shape[1]).to(torch.float16)
    outputs = testing.run(OP, backend, tokens[None], real_codebook, 60)
    testing.assert_prune_topk(outputs, tokens[None], real_codebook, 60)


def test_more_rows_than_sixteen_bits(backend):
    hidden, protos = testing.rand(1, 70001, 4), testing.rand(3, 4, seed=2)
    outputs = testing.run(OP, backend, hidden, protos, 1000)
    assert outputs[2][0].tolist() == testing.oracle_topk(outputs[3], 1000, False)[0]
    assert_same_bytes(outputs[0][0], hidden[0, outputs[2][0]])


def test_module_matches_the_op_and_follows_dtype():
    hidden, protos = testing.clustered(60, 32)[None], testing.clustered(7, 32, seed=3)
    prune = vtkernels.nn.PruneTopK(protos, keep_ratio=0.25, span_start=4, span_len=40)
    assert_same_bytes(prune(hidden), vtkernels.prune_topk(
        hidden, protos, 10, span_start=4, span_len=40, prototype_rnorm=reciprocal_norms(protos)))
    half = prune.to(torch.bfloat16)
    assert half.prototype_rnorm.dtype == torch.float32
    assert_same_bytes(half(hidden.bfloat16()), vtkernels.prune_topk(
        hidden.bfloat16(), protos.bfloat16(), 10, span_start=4, span_len=40,
        prototype_rnorm=reciprocal_norms(protos.bfloat16())))
    assert list(prune.state_dict()) == ["prototypes"]
