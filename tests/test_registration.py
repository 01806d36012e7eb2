"""The ops as torch sees them: opcheck, full graphs, dynamic k, frozen schemas, dispatch and its explanation."""

import os
import subprocess
import sys

import pytest
import torch
import torch._dynamo.testing
from helpers import flat, poison

import vtkernels
from vtkernels import _dispatch, _library, testing

FEW = {"prototype_scores": 8, "select_topk": 12, "gather_tokens": 20, "gather_kv": 20, "prune_topk": 12,
       "prune_topk_varlen": 7}
# Without float8, which torch's own schema check cannot multiply, and without dozens of layers, which are one list of
# tensors as a few are.
CASES = [pytest.param(op, s, id=f"{op}-{s.name}")
         for op, samples in testing.SAMPLES.items() for s in list(samples())[:FEW.get(op, 6)]
         if "mixed" not in s.name and "layers" not in s.name]
METADATA_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_opcheck(op, sample):
    packet = getattr(torch.ops.vtkernels, op)
    outputs = list(flat(packet(*sample.args, **sample.kwargs)))
    # torch's check of the compiled graph calls NaN different from NaN, and takes no sizes of zero as dynamic.
    comparable = all(t.numel() and not (t.is_floating_point() and t.isnan().any()) for t in outputs)
    checks = (*METADATA_CHECKS, "test_aot_dispatch_dynamic") if comparable else METADATA_CHECKS
    torch.library.opcheck(packet.default, sample.args, sample.kwargs, test_utils=checks)


def test_opcheck_is_complete_for_most_samples():
    whole = [op for op, s in (c.values for c in CASES) if all(
        t.numel() and not (t.is_floating_point() and t.isnan().any())
        for t in flat(getattr(torch.ops.vtkernels, op)(*s.args, **s.kwargs)))]
    assert set(whole) == set(testing.SAMPLES)
    assert len(whole) > len(CASES) // 2


@pytest.mark.parametrize("op", testing.SAMPLES)
def test_opcheck_of_the_out_variant(op):
    names = _library.OUT_ARGS[op]
    calls = ((s, _library.CONTRACTS[op](*s.args, **s.kwargs)) for s in testing.SAMPLES[op]())
    sample, specs = next(call for call in calls if all(t.numel() > 1 for t in flat(_library.allocate(call[1]))))
    outs = dict(zip(names, poison(specs if len(names) > 1 else (specs,)[:len(names)]), strict=True))
    packet = getattr(torch.ops.vtkernels, op)
    torch.library.opcheck(packet.out, sample.args, {**sample.kwargs, **outs},
                          test_utils=METADATA_CHECKS)


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_fake_equals_real(op, sample):
    real = getattr(torch.ops.vtkernels, op)(*sample.args, **sample.kwargs)
    mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fake = getattr(torch.ops.vtkernels, op)(*sample.args, **sample.kwargs)
    for f, r in zip(flat(fake), flat(real), strict=True):
        assert (f.shape, f.dtype, f.stride(), f.device) == (r.shape, r.dtype, r.stride(), r.device)


def test_full_graph_without_a_recompile_per_k():
    torch._dynamo.reset()
    hidden, protos = testing.clustered(120, 32).view(2, 60, 32), testing.clustered(6, 32, seed=3)
    cache = testing.rand(2, 2, 60, 8)
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def attend(x, cache, k):
        x, (cache,), indices, scores = vtkernels.prune_topk(x * 1.0, protos, k, [cache])
        return x + 1, cache, vtkernels.select_topk(scores, k), indices

    for k in (3, 7, 20, 59):
        got = attend(hidden, cache, k)
        want = vtkernels.prune_topk(hidden, protos, k, [cache])
        assert torch.equal(got[0], want[0] + 1)
        assert torch.equal(got[3], want[2])
    assert counter.frame_count == 1


def test_inductor_runs_the_op():
    torch._dynamo.reset()
    hidden, protos = testing.clustered(120, 32).view(2, 60, 32), testing.clustered(6, 32, seed=3)
    compiled = torch.compile(lambda x: vtkernels.prune_topk(x.relu(), protos, 9)[0] * 2, fullgraph=True)
    assert torch.equal(compiled(hidden), vtkernels.prune_topk(hidden.relu(), protos, 9)[0] * 2)


def test_schemas_are_those_of_the_contract():
    for name, schema in _library.SCHEMAS.items():
        op, _, overload = name.partition(".")
        registered = str(getattr(getattr(torch.ops.vtkernels, op), overload or "default")._schema)
        parsed = torch._C.parse_schema(f"vtkernels::{name}{schema}")
        assert registered == str(parsed)


def test_every_op_of_the_contract_is_public_and_documented():
    for op in _dispatch.STAGES:
        assert op in vtkernels.__all__
        doc = getattr(vtkernels, op).__doc__
        for heading in ("Args:", "Returns:", "Raises:", "Example:"):
            assert heading in doc, f"{op} has no {heading}"
        for arg in torch.ops.vtkernels.__getattr__(op).default._schema.arguments:
            assert f"{arg.name}:" in doc or f"{arg.name}," in doc or f", {arg.name}" in doc, f"{op} hides {arg.name}"


def test_explain_names_the_backend_and_refuses_unknown_ops():
    text = str(vtkernels.explain("prune_topk", torch.zeros(1)))
    assert text.startswith("prune_topk on cpu: cpu")
    for backend in ("reference", "triton", "cuda"):
        assert f"not {backend}: " in text
    with pytest.raises(ValueError, match="explain: `op` is 'nothing', allowed: prototype_scores"):
        vtkernels.explain("nothing")


FORCED = """
import torch, vtkernels
print(vtkernels.explain("select_topk", torch.zeros(1)).backend)
print(torch.ops.vtkernels.select_topk(torch.tensor([[3., 1., 2.]]), 2).tolist())
"""


def in_child(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True)


@pytest.mark.parametrize("forced", ["reference", "cpu"])
def test_the_environment_forces_a_backend(forced):
    child = in_child(FORCED, VTKERNELS_BACKEND=forced)
    assert child.stdout.split("\n")[:2] == [forced, "[[0, 2]]"], child.stderr


def test_a_forced_backend_that_cannot_run_says_why():
    child = in_child(FORCED, VTKERNELS_BACKEND="cuda")
    assert child.returncode != 0
    assert "VTKERNELS_BACKEND=cuda cannot run here: the inputs are on cpu" in child.stderr


def test_an_unknown_backend_is_refused_at_import():
    child = in_child("import vtkernels", VTKERNELS_BACKEND="gpu")
    assert "environment variable VTKERNELS_BACKEND is 'gpu', allowed: auto, reference" in child.stderr


def test_the_instruction_set_can_be_limited():
    child = in_child("import vtkernels; from vtkernels import _native; print(_native.cpu_isa())",
                     VTKERNELS_CPU_ISA="baseline")
    assert child.stdout.strip() == "baseline", child.stderr


def test_without_the_native_library_the_reference_runs_and_says_so(monkeypatch):
    monkeypatch.setattr(_dispatch._native, "load", lambda name: f"{name} was not built")
    explanation = vtkernels.explain("prune_topk", torch.zeros(1))
    assert explanation.backend == "reference"
    assert explanation.others["cpu"] == "_C_cpu was not built"
