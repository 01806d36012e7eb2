"""The benchmark suite: counts by hand, checks that refuse what is wrong, and what it prints and writes. No timings."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import (
    data,
    environment,
    families,
    features,
    gpu,
    host_cost,
    measure,
    peers,
    pipelines,
    registry,
    run,
    scaling,
    timing,
    verify,
)
from vtkernels import _native, testing

ROOT = Path(__file__).parents[1]
TINY = [c for c in registry.CASES if "quick" in c.groups]
OPS = list(registry.COUNTS)


def case(op, name):
    return next(c for c in registry.CASES if c.op == op and c.name == name)


def tiny(op):
    return next(c for c in TINY if c.op == op)


@pytest.fixture(autouse=True)
def poisoned_allocations():
    """Off here: the deterministic mode of torch that fills `empty` also changes what the peers compute."""


@pytest.mark.parametrize(("op", "name", "total", "flops"), [
    ("prune_topk", "2880x4096-P256-fp32",
     (2880 + 256) * 4096 * 4 + 2880 * 4 + 576 * 4096 * 4 + 2 * 2 * 576 * 32 * 128 * 4 + 576 * 8,
     2 * 2880 * 256 * 4096 + 2 * (2880 + 256) * 4096),
    ("prune_topk", "2880x4096-P256-bf16", 49_299_200, 6_065_487_872),
    ("prune_topk", "576x4096-P64-tokens-bf16", 4_718_592 + 524_288 + 2_304 + 1_179_648 + 1_152, 307_232_768),
    ("prune_topk_varlen", "tiny-fp32", 5_248 + 144 + 896 + 1_792 + 56 + 44, 2 * 36 * 5 * 32 + 2 * 41 * 32),
    ("prototype_scores", "tiny-fp32", 85 * 32 * 4 + 80 * 4 + 80 * 8, 2 * 80 * 5 * 32 + 2 * 85 * 32),
    ("select_topk", "1x2880-fp32", 2880 * 4 + 576 * 8, 0),
    ("gather_tokens", "tiny-fp32", 16 * (2 * (8 * 4 + 3 * 8) + 8), 0),
    ("gather_kv", "32-layers-2880-H8-bf16", 64 * 2 * 720 * 8 * 128 * 2 + 720 * 8, 0),
])
def test_counts_by_hand(op, name, total, flops):
    assert case(op, name).counts() == (total, flops)


def test_the_ten_cells_are_those_of_the_plan():
    ten = [c for c in registry.CASES if "ten" in c.groups]
    assert [(c.B, c.N, c.D, c.P, c.H, c.d) for c in ten[::2]] == [
        (1, 576, 1024, 64, 16, 64), (1, 576, 4096, 454, 32, 128), (1, 2880, 4096, 256, 32, 128),
        (1, 4096, 3584, 64, 4, 128), (16, 196, 3584, 45, 4, 128)]
    assert [c.dtype for c in ten] == [torch.float32, torch.bfloat16] * 5
    assert [c.k for c in ten[::2]] == [115, 115, 576, 819, 39]
    assert all(c.op == "prune_topk" and c.layers == 1 for c in ten)


def test_names_are_unique_and_every_op_has_a_trial():
    names = [(c.op, c.name) for c in registry.CASES]
    assert len(set(names)) == len(names)
    assert sorted(c.op for c in TINY) == sorted(OPS)
    assert {c.op for c in registry.select(group="cpu")} == set(OPS) == {c.op for c in registry.select(group="gpu")}


def size(values):
    return sum(t.numel() * t.element_size() for t in values)


def test_counts_agree_with_the_tensors():
    """Bytes of what goes in whole and of what comes out, plus the kept rows of the caches."""
    scores = tiny("prototype_scores")
    call = data.make(scores)
    outputs = testing.run("prototype_scores", "reference", *call.args)
    assert scores.counts().bytes == size([*call.args, *outputs])
    prune = tiny("prune_topk")
    call = data.make(prune)
    hidden, kv, indices, kept_scores = testing.run("prune_topk", "reference", *call.args)
    assert prune.counts().bytes == size([*call.args[:2], hidden, *kv, *kv, indices, kept_scores])


@pytest.mark.parametrize("c", TINY, ids=lambda c: c.op)
def test_data_is_seeded_and_clones_share_nothing(c):
    first, again = data.make(c), data.make(c)
    copy = first.clone()
    one, two, three = (list(tensors(x.args)) for x in (first, again, copy))
    assert one
    for a, b, d in zip(one, two, three, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, d)
        assert a.data_ptr() != d.data_ptr()
    assert next(tensors(copy.peer_args)).data_ptr() == three[0].data_ptr()


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors(v)


def test_published_codebook_is_used_where_its_width_fits(real_codebook):
    wide = case("prune_topk", "16x196x3584-P45-fp32")
    _, prototypes, source = features.features(wide)
    assert source == "published codebook"
    assert torch.equal(prototypes, real_codebook.float())
    assert features.features(tiny("prune_topk"))[2] == "generated clusters"


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("c", TINY, ids=lambda c: c.op)
def test_right_outputs_pass(c, backend):
    call = data.make(c)
    verify.check(c, call, testing.run(c.op, backend, *call.args, **call.kwargs))


def swapped(t):
    """The same values with the first two rows of the last-but-one dimension exchanged."""
    t = t.clone()
    t[..., [0, 1], :] = t[..., [1, 0], :]
    return t


FAULTS = {
    "prototype_scores": [lambda s, a: (s + 1e-4, a), lambda s, a: (s * torch.nan, a), lambda s, a: (s, (a + 1) % 5),
                         lambda s, a: (s[:, :-1], a[:, :-1])],
    "select_topk": [lambda i: i + 1, lambda i: i.flip(-1), lambda i: i[:, :-1]],
    "gather_tokens": [lambda h, p: [swapped(h), p], lambda h, p: [h, p + 1], lambda h, p: [h.double(), p]],
    "gather_kv": [lambda *kv: [*kv[:-1], swapped(kv[-1])], lambda *kv: kv[:-1], lambda *kv: [kv[0] + 0.5, *kv[1:]]],
    "prune_topk": [lambda h, kv, i, s: (swapped(h), kv, i, s), lambda h, kv, i, s: (h, [kv[0], swapped(kv[1])], i, s),
                   lambda h, kv, i, s: (h, kv, (i + 1) % 40, s), lambda h, kv, i, s: (h, kv, i, s + 1e-4),
                   lambda h, kv, i, s: (h, kv[:1], i, s)],
    "prune_topk_varlen": [lambda h, kv, i, s, c: (swapped(h), kv, i, s, c), lambda h, kv, i, s, c: (h, kv, i, s, c + 1),
                          lambda h, kv, i, s, c: (h, kv, i.flip(0), s, c), lambda h, kv, i, s, c: (h, kv, i, -s, c)],
}


def shifted(*outputs):
    """Everything a little off: numbers by a tenth of the largest one, indices and counts by two."""
    return [shifted(*t) if not isinstance(t, torch.Tensor) else
            t + 0.1 * t[t.isfinite()].abs().max() if t.is_floating_point() else t + 2 for t in outputs]


FAULTS |= {op: [lambda *outputs: shifted(*outputs)[0] if len(outputs) == 1 else shifted(*outputs)]
           for op in families.OPS}


def test_a_wrong_cache_is_refused_and_restored():
    c = tiny("gather_kv_inplace")
    call = data.make(c)
    before = [t.clone() for t in call.args[0]]
    testing.run(c.op, "reference", *call.args)
    call.args[0][1][0, 1, 2, 3] += 1
    with pytest.raises(verify.Mismatch, match="cache 1 does not hold"):
        verify.check(c, call, None)
    assert all(torch.equal(t, b) for t, b in zip(call.args[0], before, strict=True))


def faulty(op, fault, outputs):
    return fault(outputs) if isinstance(outputs, torch.Tensor) else fault(*(outputs or ()))


@pytest.mark.parametrize(("op", "fault"), [(op, f) for op in OPS for f in FAULTS[op]])
def test_wrong_outputs_are_refused(op, fault):
    c = tiny(op)
    call = data.make(c)
    outputs = testing.run(op, "reference", *call.args, **call.kwargs)
    verify.check(c, call, outputs)
    with pytest.raises(verify.Mismatch, match=f"{op} tiny-fp32: "):
        verify.check(c, call, faulty(op, fault, outputs))


@pytest.mark.parametrize("c", [*TINY, case("prune_topk", "576x1024-P64-bf16")], ids=lambda c: f"{c.op}-{c.name}")
def test_peers_compute_the_same(c):
    call = data.make(c)
    outputs = testing.run(c.op, "reference", *call.args, **call.kwargs)
    names = [n for n in peers.names(c.op, c.dtype) if n in peers.EAGER[c.op]]
    assert "eager" in names
    for name in names:
        verify.check_peer(c, call, peers.build(c, name)(call), outputs)


@pytest.mark.parametrize(("op", "fault"), [(op, f) for op in OPS for f in FAULTS[op]
                                           if op != "prototype_scores" or f is not FAULTS[op][3]])
def test_wrong_peers_are_refused(op, fault):
    c = tiny(op)
    call = data.make(c)
    outputs = testing.run(op, "reference", *call.args, **call.kwargs)
    verify.check_peer(c, call, outputs, outputs)
    with pytest.raises(verify.Mismatch):
        verify.check_peer(c, call, faulty(op, fault, outputs), outputs)


def test_a_peer_may_not_leave_out_a_better_token():
    """Another token kept instead, rows and order consistent: wrong unless the two scores are equal."""
    c = tiny("prune_topk")
    call = data.make(c)
    hidden, _, k, kv = call.args
    outputs = testing.run(c.op, "reference", *call.args)
    order = outputs[3].argsort(-1)
    kept = torch.cat([order[:, :k - 1], order[:, k:k + 1]], -1).sort(-1).values
    moved = testing.run("gather_tokens", "reference", [hidden], kept)[0]
    moved_kv = testing.run("gather_kv", "reference", kv, kept)
    with pytest.raises(verify.Mismatch, match="a lower score was left out"):
        verify.check_peer(c, call, (moved, moved_kv, kept, outputs[3]), outputs)
    level = outputs[3].clone()
    level.scatter_(1, order[:, k - 1:k + 1], level.gather(1, order[:, k - 1:k]).expand(-1, 2))
    verify._exact_selection(level[0], kept[0], k)


def test_a_compiled_peer_passes_the_same_check():
    c = tiny("prune_topk")
    call = data.make(c)
    outputs = testing.run(c.op, "reference", *call.args)
    verify.check_peer(c, call, peers.build(c, "compiled better")(call), outputs)
    torch.compiler.reset()


def test_paired_rounds_take_turns():
    calls = []

    def clock(name, value):
        def run():
            calls.append(name)
            return value
        return run

    samples = timing.paired({"a": clock("a", 1.0), "b": clock("b", 3.0)}, 0.0, min_rounds=4)
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert samples["a"].values == (1.0,) * 4
    assert samples["a"].ratio_to(samples["b"]) == 3.0
    assert timing.Samples((5.0, 1.0, 2.0, 4.0, 3.0)).quantile(0.25) == 2.0


def test_cold_copies_exceed_the_cache():
    assert timing.cold_copies(10_000_000, 60_000_000) == 18
    assert timing.cold_copies(10**9, 60_000_000) == 2
    assert timing.cold_copies(3_000, 60_000_000) is None


def test_trial_run_prints_and_writes(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    code = run.main(["--quick", "--device", "cpu", "--csv", str(tmp_path / "t.csv"), "--json", str(tmp_path / "t.json"),
                     "--plot", str(tmp_path / "t.png"), "--save", str(tmp_path / "results")])
    printed = capsys.readouterr().out
    assert code == 0, printed
    for word in ("device ", "threads", "versions vtkernels", "commit ", "command  python -m vtkernels bench --quick"):
        assert word in printed
    for op in OPS:
        assert f"{op}: ms, median of paired rounds" in printed
    assert printed.splitlines()[-1] == "prune_topk, ten cells: not measured"
    assert str(tmp_path) not in printed

    written = json.loads((tmp_path / "t.json").read_text())
    assert {"device", "device_slug", "cpu", "threads", "torch", "vtkernels", "python", "commit", "command",
            "date"} <= written.keys()
    assert [r["op"] for r in written["rows"]] == [c.op for c in TINY]
    for row in written["rows"]:
        assert row["check"] == "ok"
        assert row["backend"] in ("cpu", "reference")
        assert "eager" in row["peers"]
        assert row["best_peer"] in row["peers"]
        assert set(row["ours"]) == {"median_us", "p10_us", "p90_us"}
        assert row["ours"]["p10_us"] <= row["ours"]["median_us"] <= row["ours"]["p90_us"]
    folder = tmp_path / "results" / environment.device_slug("cpu")
    assert sorted(p.stem for p in folder.iterdir()) == sorted(OPS)
    lines = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert {r["implementation"] for r in lines} >= {"ours", "eager", "better", "copy", "matmul"}
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_no_speed_for_a_wrong_backend(monkeypatch, tmp_path, capsys):
    """A kernel that keeps the neighbour of each token it should keep."""
    def wrong(c, backend):
        def call_it(call):
            hidden, kv, indices, scores = testing.run("prune_topk", "reference", *call.args)
            return hidden, kv, (indices + 1) % c.N, scores
        return call_it

    monkeypatch.setattr(measure, "ours", wrong)
    code = run.main(["--quick", "--device", "cpu", "--op", "prune_topk", "--json", str(tmp_path / "t.json")])
    printed = capsys.readouterr().out
    assert code == 1
    assert "no speed: Mismatch: prune_topk tiny-fp32: the indices are not the k lowest scores" in printed
    (row,) = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert "ours" not in row
    assert "peers" not in row


def test_no_speed_for_a_wrong_peer(monkeypatch, capsys):
    monkeypatch.setitem(peers.EAGER["prune_topk"], "eager",
                        lambda h, p, k, kv: (h[:, :k], [t[:, :, :k] for t in kv],
                                             torch.arange(k).expand(len(h), -1), (h @ p.T).amax(-1)))
    assert run.main(["--quick", "--device", "cpu", "--op", "prune_topk"]) == 0
    printed = capsys.readouterr().out
    assert "eager refused: Mismatch: prune_topk tiny-fp32: scores differ" in printed


@pytest.mark.parametrize(("argv", "message"), [
    (["--op", "prune"], "op prune has no benchmark, allowed: prototype_scores"),
    (["--op", "select_topk", "--shape", "nowhere"], "no shape matches nowhere, allowed: 1x100352-fp32"),
    (["--backend", "fast"], "--backend is 'fast', allowed: auto, reference, cpu, triton, cuda"),
    (["--device", "cpu", "--backend", "cuda"], "--backend cuda cannot run here: the inputs are on cpu"),
    (["--group", "none"], "no shape of these ops is in the group 'none'"),
])
def test_bad_arguments(argv, message, capsys):
    assert run.main(argv) == 2
    assert message in capsys.readouterr().err


def ten_row(ratio, name="576x4096-P454-fp32"):
    shape, _, dtype = name.rpartition("-")
    return {"op": "prune_topk", "groups": ["ten"], "ratio": ratio, "mode": "calls", "name": name, "shape": shape,
            "dtype": dtype}


def test_summary_is_the_geometric_mean():
    rows = [ten_row(2.0), ten_row(0.5, "576x1024-P64-fp32"), ten_row(8.0, "4096x3584-P64-bf16"), ten_row(99.0)]
    assert run.summary(rows, "cpu") == (
        "prune_topk, 3 of the ten cells, best peer / ours: slower than 0.95x: 576x1024-P64-fp32; "
        "lowest fp32 but the first 2.00x, geometric mean 2.00x")


def test_list_prints_every_shape(capsys):
    assert run.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(registry.CASES)


def test_device_slug(monkeypatch):
    monkeypatch.setattr(environment, "device_name", lambda device: "Maker(R) Chip(TM) 9000 CPU @ 2.50GHz")
    assert environment.device_slug("cuda") == "maker-chip-9000-2-50ghz"


def test_host_cost_prints_every_op(monkeypatch, capsys):
    if _native.load("_C_cpu"):
        pytest.fail("the native CPU backend is not built")
    monkeypatch.setattr(host_cost, "REPEATS", 2)
    monkeypatch.setattr(host_cost, "CALLS", 5)
    assert host_cost.main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"{op:20}  " in printed for op in host_cost.STAGES)


def test_scaling_counts_the_memory_of_the_call():
    """The reference stores the N x P products; the native backend may not."""
    n = 200_000
    (whole,) = scaling.measure([n], "reference")
    assert whole["extra_bytes"] >= whole["products_bytes"] == 4 * n * scaling.P
    assert whole["output_bytes"] == 40_000 * (scaling.D * 4 + 8) + n * 4
    (native,) = scaling.measure([n], "cpu")
    assert native["extra_bytes"] < native["products_bytes"] / 4


def test_gpu_driver_needs_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert gpu.main([]) == 2
    message = "make gpu: torch sees no CUDA device (try --dry-run for the steps that need none)\n"
    assert capsys.readouterr().err == message


def test_gpu_dry_run(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--part", "test", "--part", "sanitize",
               "--part", "bench", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 steps passed or skipped" in done.stdout
    record = json.loads((tmp_path / environment.device_slug("cpu") / "make_gpu.json").read_text())
    assert record["dry_run"]
    assert [(s["part"], s["status"]) for s in record["steps"]] == [
        ("test", "passed"), ("sanitize", "passed"), ("bench", "passed")]


def test_gpu_steps_that_fail_or_hang_are_not_passes(tmp_path, capsys):
    session = gpu.Session(True, tmp_path, None)
    never = float("inf")
    session.run("test", gpu.Command("fails", [sys.executable, "-c", "raise SystemExit(3)"], {}), never)
    session.run("test", gpu.Command("hangs", [sys.executable, "-c", "import time; time.sleep(60)"], {}), 0.0)
    silent = gpu._pytest("nothing ran", [], {})
    silent.words = [sys.executable, "-c", "print('no tests ran')"]
    session.run("test", silent, never)
    assert [o.status for o in session.outcomes] == ["failed", "unfinished", "failed"]
    assert [o.detail for o in session.outcomes[::2]] == ["exit code 3", "no test ran"]
    assert "unfinished" in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["triton", "cuda", "reference", "none"])
@pytest.mark.parametrize("op", OPS)
def test_each_gpu_test_falls_into_one_process(backend, op):
    class Words(dict):
        def __missing__(self, word):
            return word in f"test_samples[{backend}-{op}-float32]"

    assert sum(eval(expression, {}, Words()) for expression in gpu.GPU_TESTS) == 1


def test_pipelines_agree_before_they_are_timed(monkeypatch, capsys):
    small = pipelines.PIPELINES["tome-576x1024"]._replace(make=lambda: pipelines._tokens(48, 16))
    monkeypatch.setattr(pipelines, "PIPELINES", {"small": small})
    monkeypatch.setattr(pipelines, "SECONDS", 0.0)
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    assert pipelines.main([]) == 0
    assert capsys.readouterr().out.startswith("small: ours ")
    assert pipelines.main(["large"]) == 2
    assert "no large, allowed: small" in capsys.readouterr().err

    def wrong(tokens, r):
        merged, sizes = small.ours(tokens, r)
        return merged + 1, sizes

    monkeypatch.setitem(pipelines.PIPELINES, "small", small._replace(peers={"wrong": wrong}))
    with pytest.raises(RuntimeError, match="small: wrong and ours differ"):
        pipelines.measure("small")
