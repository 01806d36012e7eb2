"""Every op on a GPU: hostile samples, CUDA graphs, overlapping streams, offsets beyond 2**31. Needs a CUDA device."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu_inputs import checked, fresh, mapped, pools_before, results, spread, tensors
from helpers import assert_same_bytes, flat, gather_status, poison
from torch import Tensor

import vtkernels
from benchmarks.sanitize_target import moved
from vtkernels import _library, testing
from vtkernels.testing import Sample, clustered, rand

DEVICE = "cuda"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch wants it for its deterministic mode

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")]

OPS = tuple(op for op in testing.SAMPLES if _library.OUT_ARGS[op])  # the others have tests of their own
SAMPLES = [pytest.param(op, s, id=f"{op}-{s.name}") for op in OPS for s in testing.SAMPLES[op]()]
REPLAYS, INPUTS = 1000, 20  # replays of a graph, and how many inputs they take turns with


@pytest.fixture(params=["triton", "cuda", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and torch.version.hip:
        pytest.skip("a ROCm build of torch has no cuda backend")
    op = getattr(request.node, "callspec", None) and request.node.callspec.params.get("op")
    if request.param == "cuda" and op and op not in _library.CUDA_OPS:
        pytest.skip(f"{op} has no CUDA C++ kernel")
    return request.param


@pytest.fixture(autouse=True)
def poisoned_allocations():
    """What `empty` returns is filled with NaN. Only warnings, because the reference uses ops without such a mode."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def on_host(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else type(value)(on_host(v) for v in value)


def run(op: str, backend: str, sample: Sample, **extra: Any) -> Any:
    return testing.run(op, backend, *moved(sample.args, DEVICE), **moved(sample.kwargs, DEVICE), **extra)


def assert_right(op: str, outputs: Any, sample: Sample) -> None:
    """Host outputs against the oracles: scores by float64, the rest exactly."""
    testing.CHECKS[op](outputs, *sample.args, **sample.kwargs)


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_samples(backend, op, sample):
    outputs = on_host(run(op, backend, sample))
    specs = list(flat_specs(_library.CONTRACTS[op](*sample.args, **sample.kwargs)))
    assert [(tuple(t.shape), t.dtype) for t in flat(outputs)] == [(tuple(s.shape), s.dtype) for s in specs]
    assert_right(op, outputs, sample)


@pytest.mark.parametrize(("op", "sample"), [c for c in SAMPLES if c.values[0] in testing.STEPS])
def test_every_iteration(backend, op, sample):
    testing.STEPS[op](lambda *args, **kwargs: on_host(run(op, backend, Sample("", args, kwargs))), *sample.args,
                      **sample.kwargs)


@pytest.mark.parametrize("sample", list(testing.SAMPLES["gather_kv_inplace"]()), ids=lambda s: s.name)
def test_gather_kv_inplace(backend, sample):
    kv, indices = sample.args
    status = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    changed = [_strided(t) for t in kv]
    testing.run("gather_kv_inplace.out", backend, changed, indices.to(DEVICE), **sample.kwargs, status=status)
    testing.assert_gather_kv_inplace([_strided(t, "cpu") for t in changed], kv, indices, **sample.kwargs)
    assert status.item() == gather_status("gather_kv_inplace", sample)


def _strided(t: Tensor, device: str = DEVICE) -> Tensor:
    """The tensor on another device with its strides, and with what lies between its elements."""
    whole = torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage()).to(device, copy=True)
    return t.new_empty(0, device=device).set_(whole.untyped_storage(), t.storage_offset(), t.shape, t.stride())


def flat_specs(spec: Any) -> Any:
    return [spec] if isinstance(spec, _library.Spec) else [s for part in spec for s in flat_specs(part)]


@pytest.mark.parametrize("op", ["compact_kv_paged", "prune_topk_paged"])
def test_pools_of_pages(backend, op):
    """The bytes of whole pools, where the other tests see only what the ops return."""
    for sample in testing.SAMPLES[op]():
        args, kwargs = moved(sample.args, DEVICE), moved(sample.kwargs, DEVICE)
        before = [testing.bytes_of(t) for t in next(a for a in sample.args if isinstance(a, list))]
        outputs = on_host(testing.run(op, backend, *args, **kwargs))
        after = [on_host(a) if isinstance(a, list) else b for a, b in zip(args, sample.args, strict=True)]
        testing.CHECKS[op](outputs, *after, before=before, **sample.kwargs)


def test_watermark(backend):
    for seed in range(300):
        call = testing.watermark_call(seed)
        before = [testing.bytes_of(t).copy() for t in call.args[0]]
        args = moved(call.args, DEVICE)
        outputs = on_host(testing.run("compact_kv_paged", backend, *args, **moved(call.kwargs, DEVICE)))
        for host, pool in zip(call.args[0], args[0], strict=True):
            host.copy_(pool)
        testing.assert_watermark(call, before, outputs)


def run_out(op: str, backend: str, sample: Sample, index_dtype: torch.dtype, **extra: Any) -> tuple:
    names = _library.OUT_ARGS[op]
    specs = _library.CONTRACTS[op](*sample.args, **sample.kwargs)
    outs = moved(poison(specs if len(names) > 1 else (specs,), index_dtype if "gather" not in op else None), DEVICE)
    run(f"{op}.out", backend, sample, **extra, **dict(zip(names, outs, strict=True)))
    return outs


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_out_variant(backend, op, sample):
    """Poisoned buffers, int32 and int64 indices, one workspace used twice, the status word of the reference."""
    extra: dict[str, Any] = {}
    want_status = torch.zeros(1, dtype=torch.int32)
    if op in _library.STATUS:
        extra["status"] = torch.zeros(1, dtype=torch.int32, device=DEVICE)
        testing.run(f"{op}.out", "reference", *sample.args, **sample.kwargs, status=want_status,
                    **dict(zip(_library.OUT_ARGS[op], host_buffers(op, sample), strict=True)))
    if op in _library.WORKSPACE:
        words = _library.WORKSPACE[op](*sample.args, **sample.kwargs)
        extra["workspace"] = torch.zeros(words, dtype=torch.int32, device=DEVICE)
    functional = run(op, backend, sample)
    for index_dtype in (torch.int64, torch.int32):
        outs = run_out(op, backend, sample, index_dtype, **extra)
        for got, want in zip(flat(outs), flat(functional), strict=True):
            assert_same_bytes(got, want if got.dtype == want.dtype else want.to(got.dtype))
    if "status" in extra:
        assert extra["status"].item() == want_status.item()


def host_buffers(op: str, sample: Sample) -> Any:
    buffers = _library.allocate(_library.CONTRACTS[op](*sample.args, **sample.kwargs))
    return buffers if len(_library.OUT_ARGS[op]) > 1 else (buffers,)


def on_device(value: Any) -> Any:
    return mapped(value, lambda t: moved(t, DEVICE))


def native(backend: str) -> None:
    if backend == "reference":
        pytest.skip("references may read metadata on the host, which a graph cannot capture")


def differ(got: list[Tensor], want: list[Tensor]) -> Tensor:
    """Whether any byte is another one, as a tensor on the device: nothing waits for it."""
    parts = [(g.reshape(-1).view(torch.uint8) != w.reshape(-1).view(torch.uint8)).any()
             for g, w in zip(got, want, strict=True) if g.numel()]
    return torch.stack(parts).any()


def captured(call: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """The outputs of a call in a CUDA graph, and what replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return outputs, graph.replay


@pytest.mark.parametrize("op", testing.SAMPLES)
def test_graph_replay_follows_its_inputs(backend, op):
    """Values and metadata change before each replay; every result equals that of a call without a graph."""
    native(backend)
    samples = [fresh(op, seed) for seed in range(INPUTS)]
    inputs = [on_device((s.args, s.kwargs)) for s in samples]
    wanted = []
    for sample, (args, kwargs) in zip(samples, inputs, strict=True):
        before = pools_before(op, sample)
        args = mapped(args, torch.clone)
        outputs = testing.run(op, backend, *args, **kwargs)
        wanted.append([t.clone() for t in results(op, outputs, args)])
        checked(op, sample, mapped(args, Tensor.cpu), sample.kwargs, mapped(outputs, Tensor.cpu), before)
    args, kwargs = mapped(inputs[0], torch.clone)
    held = tensors((args, kwargs))
    outputs, replay = captured(lambda: testing.run(op, backend, *args, **kwargs))
    got = results(op, outputs, args)
    wrong = torch.zeros(REPLAYS, dtype=torch.bool, device=DEVICE)
    for i in range(REPLAYS):
        for t, new in zip(held, tensors(inputs[i % INPUTS]), strict=True):
            t.copy_(new)
        replay()
        wrong[i] = differ(got, wanted[i % INPUTS])
    assert wrong.nonzero().flatten().tolist() == []


@pytest.mark.parametrize("op", testing.SAMPLES)
def test_two_streams_do_not_disturb_each_other(backend, op):
    inputs = [on_device((s.args, s.kwargs)) for s in (fresh(op, seed) for seed in (1, 2))]

    def call(args: Any, kwargs: Any) -> list[Tensor]:
        args = mapped(args, torch.clone)
        return results(op, testing.run(op, backend, *args, **kwargs), args)

    want = [mapped(call(*each), Tensor.cpu) for each in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    found: list[list[Any]] = [[], []]
    for _ in range(60):
        for i, each in enumerate(inputs):
            with torch.cuda.stream(streams[i]):
                found[i].append(call(*each))
    torch.cuda.synchronize()
    for i, outputs in enumerate(found):
        for out in outputs:
            assert_same_bytes(mapped(out, Tensor.cpu), want[i])


@pytest.mark.parametrize("op", testing.SAMPLES)
def test_offsets_beyond_2_31_change_nothing(backend, op):
    """An input over more than 2**31 elements gives what the same values give side by side."""
    need_memory(20)
    found = []
    plain = fresh(op, 0)
    for sample in (plain, spread(plain, lambda size: torch.empty(size, dtype=torch.uint8, device=DEVICE))):
        args = mapped(sample.args, lambda t: t.clone() if t.device.type == "cpu" else t)
        args, kwargs = on_device((args, sample.kwargs))
        found.append(mapped(results(op, testing.run(op, backend, *args, **kwargs), args), Tensor.cpu))
    assert_same_bytes(*found)


@pytest.mark.parametrize("op", ["prototype_scores", "prune_topk"])
def test_a_row_does_not_depend_on_its_neighbours(backend, op):
    if backend == "reference":
        pytest.skip("the reference multiplies through torch, whose blocking is not ours")
    hidden, protos = clustered(900, 96).view(3, 300, 96), clustered(20, 96, seed=5)
    other = hidden.clone()
    other[0], other[2] = rand(300, 96, seed=8), 0
    extra = (60,) if op == "prune_topk" else ()
    results = [on_host(run(op, backend, Sample(op, (h, protos, *extra), {}))) for h in (hidden, other, hidden)]
    for a, b, again in zip(*map(list, map(flat, results)), strict=True):
        assert_same_bytes(a[1], b[1])
        assert_same_bytes(a, again)


def test_ties_prefer_the_lowest_prototype(backend):
    protos = rand(3, 24).repeat(30, 1)
    _, argmax = on_host(run("prototype_scores", backend, Sample("ties", (rand(1, 70, 24, seed=5), protos), {})))
    assert int(argmax.max()) < 3


def need_memory(gigabytes: int) -> None:
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"{free:.0f} GiB of device memory are free, the test needs {gigabytes}")


def test_gathers_beyond_2_31_elements(backend):
    need_memory(24)
    n, width = 2**21 + 77, 1024  # 2**31 elements and more
    rows = torch.tensor([[0, 5, n // 2, n - 78, n - 77, n - 2, n - 1]])
    cache = torch.randint(0, 256, (1, 1, n, width), dtype=torch.uint8, device=DEVICE)
    for index_dtype in (torch.int32, torch.int64):
        indices = rows.to(DEVICE, index_dtype)
        (out,) = testing.run("gather_kv", backend, [cache], indices)
        assert torch.equal(out[0, 0], torch.cat([cache[0, 0, i:i + 1] for i in rows[0].tolist()]))
        (out,) = testing.run("gather_tokens", backend, [cache[0]], indices)
        assert torch.equal(out[0], torch.cat([cache[0, 0, i:i + 1] for i in rows[0].tolist()]))


@pytest.mark.parametrize("op", ["prune_topk", "prune_topk_varlen"])
def test_prune_beyond_2_31_elements(backend, op):
    if backend == "reference":
        pytest.skip("the reference copies the tokens to float32 several times over")
    need_memory(24)
    n, width, k = 2**19 + 77, 4096, 1000
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden = torch.randn(n, width, generator=generator, dtype=torch.bfloat16, device=DEVICE)
    protos = torch.randn(5, width, generator=generator, dtype=torch.bfloat16, device=DEVICE)
    hidden[-40:] -= protos[0]  # the far end is sure to hold some of the least similar tokens
    if op == "prune_topk":
        out, _, indices, scores = testing.run(op, backend, hidden[None], protos, k)
        out, indices, scores = out[0], indices[0], scores[0]
    else:
        ints = [torch.tensor(v, dtype=torch.int32, device=DEVICE) for v in ([0, n], [k])]
        out, _, indices, scores, _ = testing.run(op, backend, hidden, protos, *ints, k)
    assert indices.tolist() == testing.oracle_topk(scores[None], k, False)[0]
    assert int(indices[-1]) >= n - 40
    assert torch.equal(out.view(torch.int16), hidden.index_select(0, indices).view(torch.int16))
    for part in (slice(0, 300), slice(2**19 - 150, 2**19 + 77)):
        testing.assert_scores(scores[part], hidden[part], protos)


def test_dispatch_takes_the_first_backend_of_the_order():
    sample = fresh("prune_topk", 3)
    args, kwargs = moved(sample.args, DEVICE), moved(sample.kwargs, DEVICE)
    chosen = vtkernels.explain("prune_topk", *args, **kwargs).backend
    assert chosen != "reference"
    outputs = torch.ops.vtkernels.prune_topk.default(*args, **kwargs)
    assert_same_bytes(on_host(outputs), on_host(testing.run("prune_topk", chosen, *args, **kwargs)))
    assert_right("prune_topk", on_host(outputs), sample)


def test_compiles_as_one_graph():
    sample = fresh("prune_topk", 4)
    args, kwargs = moved(sample.args, DEVICE), moved(sample.kwargs, DEVICE)
    compiled = torch.compile(lambda hidden, protos, k, kv: vtkernels.prune_topk(hidden * 1, protos, k, kv, **kwargs),
                             fullgraph=True)
    assert_right("prune_topk", on_host(compiled(*args)), sample)
