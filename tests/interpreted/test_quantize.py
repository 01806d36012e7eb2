"""quantize_kv and dequantize_kv in the interpreter."""

import pytest
import torch
from helpers import assert_same_bytes, flat, run_out, samples

from vtkernels import _library, _triton, testing
from vtkernels.compact.dequantize_kv.triton import restore_kernel
from vtkernels.compact.quantize_kv.triton import channels_kernel, codes_kernel, ranges_kernel

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def launched(monkeypatch):
    kernels = []
    launch = _triton.launch

    def recorded(*args, **options):
        kernels.append(args[0])
        launch(*args, **options)

    monkeypatch.setattr(_triton, "launch", recorded)
    return kernels


@samples("quantize_kv")
def test_quantize_kv(sample, launched):
    status = torch.zeros(1, dtype=torch.int32)
    packed = run_out("quantize_kv", "triton", sample, status=status)
    if all(t.numel() for t in flat(packed)):
        assert set(launched) == {channels_kernel, ranges_kernel, codes_kernel}
    testing.assert_quantize_kv(packed, *sample.args)
    assert status.item() == (_library.STATUS_BAD_INDEX if "out-of-range" in sample.name else 0)


@samples("dequantize_kv")
def test_dequantize_kv(sample, launched):
    status = torch.zeros(1, dtype=torch.int32)
    restored = run_out("dequantize_kv", "triton", sample, status=status)
    assert bool(launched) == (restored[0].numel() > 0)
    assert set(launched) <= {restore_kernel}
    testing.assert_dequantize_kv(restored, *sample.args, **sample.kwargs)
    assert status.item() == (_library.STATUS_BAD_INDEX if "out-of-range" in sample.name else 0)


# Not bfloat16, which the interpreter cuts off instead of rounding it.
@pytest.mark.parametrize("sample", [s for s in testing.SAMPLES["quantize_kv"]() if s.name in (
    "float32-hostile", "float16-hostile", "float16-hostile-8", "one-channel")], ids=lambda s: s.name)
def test_every_element_comes_back_within_half_a_step(sample):
    key, value, indices, bits = sample.args
    packed = testing.run("quantize_kv", "triton", *sample.args)
    restored = testing.run("dequantize_kv", "triton", *packed, indices, bits, key.shape[2], dtype=key.dtype)
    testing.assert_round_trip(restored, key, value, packed, indices)


def test_chunks_of_rows_make_no_difference(monkeypatch):
    """300 rows in chunks of 128, and in one."""
    sample = next(s for s in testing.SAMPLES["quantize_kv"]() if s.name == "long-rows")
    whole = testing.run("quantize_kv", "triton", *sample.args)
    config = {"block_elements": 4096, "chunk_rows": 512, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr("vtkernels.tuning.lookup.config", lambda *_, **__: config)
    assert_same_bytes(testing.run("quantize_kv", "triton", *sample.args), whole)
