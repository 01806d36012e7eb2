"""select_topk on the backends of the CPU: exact positions."""

import pytest
import torch
from helpers import assert_contract, run_out, samples

from vtkernels import testing

OP = "select_topk"


@samples(OP)
def test_exact(backend, sample):
    scores, k = sample.args
    out = testing.run(OP, backend, *sample.args, **sample.kwargs)
    assert_contract(OP, out, sample)
    assert out.tolist() == testing.oracle_topk(scores, k, sample.kwargs.get("largest", True))


@samples(OP)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_out_variant_equals_functional(backend, sample, index_dtype):
    (out,) = run_out(OP, backend, sample, index_dtype)
    assert out.tolist() == testing.run(OP, backend, *sample.args, **sample.kwargs).tolist()


def test_out_may_be_a_slice_of_a_larger_buffer(backend):
    buffer = torch.full((3, 9), -7)
    scores = testing.rand(3, 50)
    testing.run("select_topk.out", backend, scores, 4, out=buffer[:, 2:6])
    assert buffer[:, 2:6].tolist() == testing.oracle_topk(scores, 4, True)
    assert (buffer[:, :2] == -7).all()
    assert (buffer[:, 6:] == -7).all()
