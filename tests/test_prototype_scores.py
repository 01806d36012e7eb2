"""prototype_scores on the backends of the CPU, against float64."""


import pytest
import torch
from helpers import assert_contract, assert_same_bytes, run_out, samples

from vtkernels import testing

OP = "prototype_scores"


@samples(OP)
def test_against_float64(backend, sample):
    scores, argmax = outputs = testing.run(OP, backend, *sample.args, **sample.kwargs)
    assert_contract(OP, outputs, sample)
    testing.assert_scores(scores, *sample.args, sample.kwargs.get("metric", "cosine"), argmax)
    again = testing.run(OP, backend, *sample.args, **sample.kwargs)
    assert_same_bytes(again, outputs)


@samples(OP)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_out_variant_equals_functional(backend, sample, index_dtype):
    scores, argmax = testing.run(OP, backend, *sample.args, **sample.kwargs)
    outs = run_out(OP, backend, sample, index_dtype)
    assert_same_bytes(outs, (scores, argmax.to(index_dtype)))


def test_ties_prefer_the_lowest_prototype(backend):
    protos = testing.rand(3, 20).repeat(30, 1)
    _, argmax = testing.run(OP, backend, testing.rand(50, 20, seed=5), protos)
    assert int(argmax.max()) < 3


def test_nan_prototype_wins_and_is_named(backend):
    protos = testing.rand(70, 20)
    protos[41, 3] = torch.nan
    scores, argmax = testing.run(OP, backend, testing.rand(9, 20), protos)
    assert scores.isnan().all()
    assert argmax.tolist() == [41] * 9


def test_given_norms_are_used(backend):
    tokens, protos = testing.rand(9, 20), testing.rand(4, 20, seed=1)
    rnorm = torch.tensor([0.0, 9.0, 2.0, 9.0, 0.0, 9.0, 0.0, 9.0])[::2]
    scores, argmax = testing.run(OP, backend, tokens, protos, prototype_rnorm=rnorm)
    expected = (tokens @ protos[1] * 2).clamp(min=0) / tokens.norm(dim=-1)
    torch.testing.assert_close(scores, expected)
    assert set(argmax.tolist()) <= {0, 1}


@pytest.mark.parametrize("p", [1, 15, 16, 17, 33, 45, 48, 64, 513, 1100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prototype_counts(backend, p, dtype):
    tokens, protos = testing.clustered(61, 300, dtype=dtype), testing.clustered(p, 300, dtype=dtype, seed=9)
    scores, argmax = testing.run(OP, backend, tokens, protos)
    testing.assert_scores(scores, tokens, protos, argmax=argmax)


@pytest.mark.parametrize("d", [1, 2, 255, 256, 257, 511, 513, 1024])
def test_widths(backend, d):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        tokens, protos = testing.clustered(30, d, dtype=dtype), testing.clustered(20, d, dtype=dtype, seed=9)
        scores, argmax = testing.run(OP, backend, tokens, protos)
        testing.assert_scores(scores, tokens, protos, argmax=argmax)


def test_a_row_does_not_depend_on_its_neighbours(backend):
    if backend == "reference":
        pytest.skip("the reference multiplies through torch, whose blocking depends on the batch")
    tokens, protos = testing.clustered(700, 600), testing.clustered(70, 600, seed=3)
    together, _ = testing.run(OP, backend, tokens, protos)
    for i in (0, 13, 14, 350, 699):
        alone, _ = testing.run(OP, backend, tokens[i:i + 1], protos)
        assert alone.item() == together[i].item()


def test_every_instruction_set(instruction_set):
    for sample in testing.score_samples():
        scores, argmax = testing.run(OP, "cpu", *sample.args, **sample.kwargs)
        testing.assert_scores(scores, *sample.args, sample.kwargs.get("metric", "cosine"), argmax)
    for d, p in ((513, 45), (1000, 130), (255, 16)):
        tokens, protos = testing.clustered(61, d, dtype=torch.bfloat16), testing.rand(p, d, dtype=torch.bfloat16)
        scores, argmax = testing.run(OP, "cpu", tokens, protos)
        testing.assert_scores(scores, tokens, protos, argmax=argmax)
