"""Every published method: against its loop, row by row, under hostile values, without a host sync, documented."""

import copy
import doctest
import importlib
import re

import pytest
import torch
from methods_suite import assert_close, cases, check_hostile, check_reference, check_rows, example, without
from torch._subclasses.fake_tensor import FakeTensorMode

import vtkernels
from benchmarks import loops
from vtkernels import methods
from vtkernels.methods._inputs import map_tensors
from vtkernels.methods._method import EVIDENCE, FAMILIES, PLACES, RETURNS, TAXONOMY

ALL = pytest.mark.parametrize(("name", "config", "stage"), cases())


@ALL
@pytest.mark.parametrize("size", ["small", "odd"])
def test_against_its_loop(name, config, stage, size):
    check_reference(name, config, stage, size)


@ALL
def test_a_row_does_not_depend_on_the_batch(name, config, stage):
    check_rows(name, config, stage)


@ALL
def test_hostile_values_stay_in_their_row(name, config, stage):
    check_hostile(name, config, stage)


@ALL
def test_no_host_sync(name, config, stage):
    """A fake tensor has no values: whatever waits for one fails."""
    method, inputs = methods.get(name, **config), example(name, "small", 2)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        method(map_tensors(inputs, mode.from_tensor), stage=stage)


def on_cuda(value):
    """Tensors and modules of a configuration, on the GPU."""
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).cuda()
    if isinstance(value, dict):
        return {k: on_cuda(v) for k, v in value.items()}
    return map_tensors(value, torch.Tensor.cuda)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@ALL
def test_on_a_gpu_without_a_host_sync(name, config, stage):
    method, inputs = methods.get(name, **on_cuda(config)), example(name, "small", 2)
    device_inputs = map_tensors(inputs, torch.Tensor.cuda)
    method(device_inputs, stage=stage)  # kernels are compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = method(device_inputs, stage=stage)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(map_tensors(result, torch.Tensor.cpu), methods.get(name, **config)(inputs, stage=stage))


@pytest.mark.parametrize(("name", "need"), [(n, need) for n, m in methods.methods().items() for need in m.info.needs])
def test_a_missing_signal_is_named(name, need):
    config = next(iter(loops.loop_of(name).VARIANTS.values()))
    with pytest.raises(ValueError, match=rf"{name}: `inputs.{need}` is missing, allowed: .{{12}}"):
        methods.get(name, **config)(without(example(name, "small", 2), need))


@pytest.mark.parametrize("name", methods.list())
def test_documented_with_its_source(name):
    method = methods.methods()[name]
    text = method.__doc__
    assert re.search(r"Source: .{20}", text, re.S)
    assert re.search(r"Args:\n( {8}\w.*\n?)+", text) or not method.defaults()
    assert all(re.search(rf"^        (?:\w+, )*{arg}(?:, \w+)*:", text, re.M) for arg in method.__dataclass_fields__)
    info = method.info
    assert (info.family in FAMILIES, info.place in PLACES, info.returns in RETURNS, info.evidence in EVIDENCE,
            info.taxonomy in TAXONOMY) == (True,) * 5
    if info.evidence == "abstract":
        assert "ours" in text, "say that the details are ours"


@pytest.mark.parametrize("name", methods.list())
def test_typical_inputs_run(name):
    loop = loops.loop_of(name)
    assert set(loop.VARIANTS)
    assert methods.get(name, **loop.TYPICAL)


@pytest.mark.parametrize("function", ["list", "get", "batch"])
def test_docstring_examples(function):
    module = importlib.import_module(getattr(methods, function).__module__)
    test = doctest.DocTestFinder().find(getattr(module, function), function,
                                        globs={"torch": torch, "vtkernels": vtkernels})[0]
    assert test.examples
    failures: list[str] = []
    doctest.DocTestRunner().run(test, out=failures.append)
    assert not failures, "".join(failures)
