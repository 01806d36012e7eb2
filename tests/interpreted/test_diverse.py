"""The Triton kernels of select_diverse in the interpreter: every pick attains the maximum."""

import pytest
import torch
from helpers import run_out, samples

from vtkernels import _library, _triton, testing
from vtkernels.select.select_diverse import triton as kernels
from vtkernels.testing.diverse import oracle_diverse, signs
from vtkernels.tuning import lookup

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, of the hostile samples
OP = "select_diverse"


@pytest.fixture
def launches(monkeypatch):
    names, launch = [], _triton.launch
    monkeypatch.setattr(_triton, "launch", lambda kernel, *args, **options: (
        names.append(kernel.__name__), launch(kernel, *args, **options)))
    return names


@samples(OP)
def test_picks(launches, sample):
    status = torch.zeros(1, dtype=torch.int32)
    outs = run_out(OP, "triton", sample, torch.int32, status=status)
    last = "determinant_kernel" if sample.kwargs.get("objective") == "dpp" else "distance_kernel"
    assert last in launches or outs[0].numel() == 0, "no kernel was launched"
    testing.assert_diverse(outs, *sample.args, **sample.kwargs)
    if "exact" in sample.name:
        assert outs[0].tolist() == oracle_diverse(*sample.args, **sample.kwargs)
    assert status.item() == (_library.STATUS_BAD_INDEX if "bad-seeds" in sample.name else 0)


@pytest.mark.parametrize("objective", ["max_min", "max_sum", "dpp"])
def test_small_blocks_and_few_images_at_a_time(launches, monkeypatch, objective):
    config = {"block_n": 16, "block_d": 16, "num_warps": 4, "num_stages": 1, "pick_block": 16, "pick_warps": 4}
    monkeypatch.setattr(lookup, "config", lambda *args, **shape: config)
    monkeypatch.setattr(kernels, "MATRIX_BYTES", 4 * 20 * 20 * 2)
    for x in (testing.clustered(3 * 20, 24).view(3, 20, 24), signs(3, 20, 16)):
        outs = testing.run(OP, "triton", x, 8, objective=objective)
        testing.assert_diverse(outs, x, 8, objective=objective)
        if objective != "dpp" and x.shape[2] == 16:
            assert outs[0].tolist() == oracle_diverse(x, 8, objective=objective)
    assert launches.count("similarity_kernel") == 4
