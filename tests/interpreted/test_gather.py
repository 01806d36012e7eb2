"""gather_kv_inplace and rotate_keys in the interpreter; the other gathers are in test_triton_interpreter.py."""

import pytest
import torch
from helpers import assert_same_bytes, gather_status, run_out, samples

from vtkernels import _triton, testing
from vtkernels.compact.gather_tokens.triton import check_kernel, gather_kernel
from vtkernels.compact.rotate_keys.triton import rotate_kernel

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, of the hostile samples


@pytest.fixture
def launched(monkeypatch):
    kernels, launch = [], _triton.launch

    def recorded(*args, **options):
        kernels.append(args[0])
        launch(*args, **options)

    monkeypatch.setattr(_triton, "launch", recorded)
    return kernels


@samples("gather_kv_inplace")
def test_gather_kv_inplace(sample, launched):
    (kv, indices), status = sample.args, torch.zeros(1, dtype=torch.int32)
    changed = [testing.copied(t) for t in kv]
    run_out("gather_kv_inplace", "triton", sample._replace(args=(changed, indices)), status=status)
    assert launched == [gather_kernel] * (indices.numel() > 0)
    testing.assert_gather_kv_inplace(changed, kv, indices, **sample.kwargs)
    assert status.item() == gather_status("gather_kv_inplace", sample)


def test_status_in_place_without_bytes_to_move(launched):
    status = torch.zeros(1, dtype=torch.int32)
    testing.run("gather_kv_inplace.out", "triton", [testing.rand(1, 2, 5, 0)], torch.tensor([[0, 0]]), status=status)
    assert launched == [check_kernel]
    assert status.item() == 1


def test_more_tensors_with_indices_of_their_own_than_the_parameters_hold(monkeypatch, launched):
    monkeypatch.setattr(_triton, "PARAMETER_WORDS", 64 + 40)
    kv = [testing.rand(1, 2, 9, 4, seed=i) for i in range(16)]
    indices = torch.randint(-1, 9, (16, 1, 2, 3), generator=torch.Generator().manual_seed(0))
    outs = testing.run("gather_kv", "triton", kv, indices)
    assert launched == [gather_kernel] * 3
    testing.assert_gather_kv(outs, kv, indices)


@samples("rotate_keys")
def test_rotate_keys(sample, launched):
    (out,) = run_out("rotate_keys", "triton", sample)
    assert launched == [rotate_kernel] * (out.numel() > 0)
    testing.assert_rotate_keys(out, *sample.args, **sample.kwargs)
    if "strided" not in sample.name:
        want = testing.run("rotate_keys", "triton", *sample.args, **sample.kwargs)
        assert_same_bytes(out, want)
