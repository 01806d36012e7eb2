"""Every Triton kernel, run by Triton's interpreter against the oracles.

Triton decides when its modules are imported whether they are interpreted, and the tests that compile need them not to
be. So in an ordinary run this file runs itself in a process of its own. By hand, to choose tests:
`TRITON_INTERPRET=1 pytest tests/test_triton_interpreter.py -k strided`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETING:

    FILES = [Path(__file__), *sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))]

    METHODS = [path for path in FILES if path.stem.startswith("test_methods")]

    @pytest.mark.long
    @pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
    def test_further_variants_in_the_interpreter(path: Path) -> None:
        run_in_the_interpreter(path, "-m", "long")

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
    def test_in_the_interpreter(path: Path) -> None:
        run_in_the_interpreter(path)

    def run_in_the_interpreter(path: Path, *options: str) -> None:
        command = [sys.executable, "-m", "pytest", str(path), "-q", "-x", "--no-header", "-p", "no:cacheprovider",
                   *options]
        backend = "triton" if path.stem.startswith("test_methods") else "auto"
        # The kernels are NumPy on small blocks: a second thread of torch only waits.
        environment = {**os.environ, "TRITON_INTERPRET": "1", "VTKERNELS_BACKEND": backend, "OMP_NUM_THREADS": "1"}
        # A program that waits for what never comes would wait for ever.
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
        if child.returncode:
            pytest.fail(f"{child.stdout}\n{child.stderr}", pytrace=False)
        summary = child.stdout.strip().splitlines()[-1]
        assert re.match(r"[1-9]\d* passed", summary), f"no test ran: {summary}"
        assert "skipped" not in summary, summary
        print(summary)

else:
    import numpy as np
    import torch
    from helpers import assert_contract, assert_same_bytes, flat, poison, run_out

    import vtkernels
    from vtkernels import _library, _triton, testing
    from vtkernels.compact.gather_tokens.triton import gather_kernel
    from vtkernels.fused.prune_topk.triton import one_launch_kernel, prune_topk_out
    from vtkernels.fused.prune_topk_varlen.triton import prune_topk_varlen_out
    from vtkernels.tuning import lookup

    pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, of the hostile samples
    ANY_GRID = (one_launch_kernel, gather_kernel)
    GATHERS = ("gather_tokens", "gather_kv")
    PATHS = ("one_launch", "two_launch")

    class Recorder:
        """Passes launches on and counts them; kernels that take any number of programs get `programs`."""

        def __init__(self, launch):
            self.launch, self.kernels, self.programs = launch, [], None

        def __call__(self, kernel, programs, *args, **options):
            self.kernels.append(kernel)
            self.launch(kernel, self.programs or programs if kernel in ANY_GRID else programs, *args, **options)

    @pytest.fixture
    def launches(monkeypatch):
        recorder = Recorder(_triton.launch)
        monkeypatch.setattr(_triton, "launch", recorder)
        return recorder

    def samples(op, **arguments):
        return pytest.mark.parametrize("sample", list(testing.SAMPLES[op](**arguments)), ids=lambda s: s.name)

    def some(op, dtypes, names):
        """Samples of all names in bfloat16, and of a few in the other dtypes."""
        return [s for s in testing.SAMPLES[op]() if s.name.startswith("bfloat16") or
                any(s.name == f"{d}-{n}" for d in dtypes for n in names)]

    def run_counted(launches, op, sample, **extra):
        outs = run_out(op, "triton", sample, **extra)
        assert launches.kernels or not any(t.numel() for t in flat(outs)), "no kernel was launched"
        return outs

    @samples("prototype_scores")
    def test_prototype_scores(launches, sample):
        scores, argmax = run_counted(launches, "prototype_scores", sample, index_dtype=torch.int32)
        testing.assert_scores(scores, *sample.args, argmax=argmax, **sample.kwargs)
        assert not (torch.signbit(scores) & (scores == 0)).any(), "a score is -0"
        _, expected = testing.run("prototype_scores", "reference", *sample.args, **sample.kwargs)
        # Where the products are NaN or infinite whatever the order of the sum, or all equal.
        same = ~sample.args[0].isfinite().all(-1) | ("equal" in sample.name)
        assert torch.equal(argmax[same].long(), expected[same])
        if sample.kwargs.get("metric", "cosine") == "cosine" and sample.args[1].dim() == 2:
            from vtkernels.score.prototype_scores.reference import reciprocal_norms

            rnorm = reciprocal_norms(sample.args[1]).repeat_interleave(2)[::2]
            given = testing.run("prototype_scores", "triton", *sample.args, **sample.kwargs, prototype_rnorm=rnorm)
            testing.assert_scores(given[0], *sample.args, argmax=given[1], **sample.kwargs)

    def test_norms_that_float32_cannot_hold(launches):
        """Squares that overflow or vanish though the products are ordinary numbers, on both sides."""
        tokens = testing.rand(1, 20, 16)
        tokens[0, :3] *= torch.tensor([1e20, 1e-20, 1e-25])[:, None]
        protos = testing.rand(5, 16, seed=1)
        for scale in (1.0, 1e20, 1e-20):
            scaled = torch.cat([protos, protos[:1] * scale])
            scores, argmax = testing.run("prototype_scores", "triton", tokens, scaled)
            want = testing.run("prototype_scores", "reference", tokens, scaled)
            testing.assert_scores(scores, tokens, scaled, argmax=argmax)
            assert torch.equal(scores.isnan(), want[0].isnan())
            assert scores.isnan().sum() == (20 if scale > 1 else 1)
        assert len(launches.kernels) == 3

    def test_argmax_is_the_lowest_of_equal_prototypes_over_all_tiles(launches):
        protos = testing.rand(1, 16, seed=1).expand(300, 16)
        _, argmax = testing.run("prototype_scores", "triton", testing.rand(1, 40, 16), protos)
        assert launches.kernels
        assert argmax.tolist() == [[0] * 40]

    @samples("select_topk")
    def test_select_topk(launches, sample):
        _scores, k = sample.args
        (out,) = run_counted(launches, "select_topk", sample, index_dtype=torch.int32 if k % 2 else torch.int64)
        assert out.tolist() == testing.oracle_topk(*sample.args, **sample.kwargs)

    @pytest.mark.parametrize(("op", "sample", "programs"), [
        pytest.param(op, s, (None, 1, 3)[i % 3], id=f"{op}-{s.name}")
        for op in GATHERS for i, s in enumerate(testing.SAMPLES[op]())])
    def test_gather(launches, op, sample, programs):
        want_status, status = torch.zeros(2, 1, dtype=torch.int32)
        (want,) = run_out(op, "reference", sample, status=want_status)
        launches.programs = programs
        (outs,) = run_counted(launches, op, sample, status=status)
        assert launches.kernels.count(gather_kernel) <= 1, "one launch moves all tensors"
        assert_same_bytes(outs, want)
        assert status.item() == want_status.item()

    def test_gather_status_without_bytes_to_move(launches):
        status = torch.zeros(1, dtype=torch.int32)
        testing.run("gather_tokens.out", "triton", [testing.rand(2, 5, 0)], torch.tensor([[0, 4], [5, 1]]),
                    out=[torch.empty(2, 2, 0)], status=status)
        assert launches.kernels
        assert status.item() == _library.STATUS_BAD_INDEX

    def test_gather_of_more_tensors_than_the_parameters_hold(launches, monkeypatch):
        monkeypatch.setattr(_triton, "PARAMETER_WORDS", 64 + 40)
        kv = [testing.rand(1, h, 9, 4, seed=i) for i in range(4) for h in (1, 2, 3)]
        kv += [testing.rand(1, 1, 9, 4, seed=i) for i in range(20)]
        indices = torch.tensor([[1, 4, 8]])
        outs = testing.run("gather_kv", "triton", kv, indices)
        assert len(launches.kernels) == 4
        assert_same_bytes(outs, testing.run("gather_kv", "reference", kv, indices))

    def test_offsets_beyond_32_bits(launches, tmp_path):
        sparse = np.memmap(tmp_path / "sparse", dtype=np.int16, mode="w+", shape=3 << 30)
        x = torch.from_numpy(sparse).as_strided((2, 3, 5), (5, 2**30 + 7, 1))
        x.copy_(torch.arange(30).view(2, 3, 5))
        indices = torch.tensor([[2, 1], [0, 2]])
        (out,) = testing.run("gather_tokens", "triton", [x], indices)
        assert launches.kernels
        assert torch.equal(out, torch.stack([x[0, [2, 1]], x[1, [0, 2]]]))

    def prune_twice(launches, op, sample, path):
        """Two calls on one workspace, with other index dtypes and grids. Returns the outputs of both."""
        batch = sample.args[0].shape[0] if op == "prune_topk" else sample.args[3].shape[0]
        workspace = torch.zeros(vtkernels.workspace_size(batch), dtype=torch.int32)
        want_status = torch.zeros(1, dtype=torch.int32)
        run_out(op, "reference", sample, status=want_status)
        function = prune_topk_out if op == "prune_topk" else prune_topk_varlen_out
        results = []
        for index_dtype, programs in ((torch.int32, 1), (torch.int64, 5)):
            launches.programs = programs
            launches.kernels.clear()
            status = torch.zeros(1, dtype=torch.int32)
            outs = poison(_library.CONTRACTS[op](*sample.args, **sample.kwargs), index_dtype)
            function(*sample.args, **sample.kwargs, **dict(zip(_library.OUT_ARGS[op], outs, strict=True)),
                     workspace=workspace, status=status, _path=path)
            assert launches.kernels, "no kernel was launched"
            assert not workspace.any(), "the workspace is not zero again"
            assert status.item() == want_status.item()
            results.append(outs)
        return results

    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("sample", some("prune_topk", ("float32", "float16"), (
        "2x37x40-k9", "hostile", "strided", "span-starts")), ids=lambda s: s.name)
    def test_prune_topk(launches, sample, path):
        for outs in prune_twice(launches, "prune_topk", sample, path):
            testing.assert_prune_topk(outs, *sample.args, **sample.kwargs)
        assert (one_launch_kernel in launches.kernels) == (path == "one_launch" and outs[0].numel() > 0)
        assert len(launches.kernels) <= PATHS.index(path) + 1

    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("sample", some("prune_topk_varlen", ("float32", "float16"), (
        "spans", "hostile-metadata")), ids=lambda s: s.name)
    def test_prune_topk_varlen(launches, sample, path):
        want = testing.run("prune_topk_varlen", "reference", *sample.args, **sample.kwargs)
        scored = ~want[3].isnan()
        for hidden, kv, indices, scores, cu in prune_twice(launches, "prune_topk_varlen", sample, path):
            assert_same_bytes((hidden, kv, indices.long(), cu), (want[0], want[1], want[2], want[4]))
            assert torch.equal(scores.isnan(), want[3].isnan())
            testing.assert_scores(scores[scored], sample.args[0][scored], sample.args[1])
        assert (one_launch_kernel in launches.kernels) == (path == "one_launch" and hidden.numel() > 0)

    @pytest.mark.parametrize("op", ["prune_topk", "prune_topk_varlen"])
    def test_functional_ops_allocate_for_themselves(launches, op):
        sample = next(s for s in testing.SAMPLES[op]() if s.name in ("bfloat16-span", "bfloat16-spans"))
        outs = testing.run(op, "triton", *sample.args, **sample.kwargs)
        assert launches.kernels
        assert_contract(op, outs, sample)
        want = testing.run(op, "reference", *sample.args, **sample.kwargs)
        assert_same_bytes((outs[0], outs[1], outs[2]), (want[0], want[1], want[2]))

    @pytest.mark.parametrize("path", PATHS)
    def test_rows_longer_than_every_block(launches, monkeypatch, path):
        """Several blocks of selection, of text before and after the span, of prototypes, and of rows to gather."""
        config = {"block_n": 64, "block_p": 64, "block_d": 16, "select_block": 128, "block_rows": 512,
                  "block_bytes": 256, "programs_per_sm": 2, "num_warps": 4, "num_stages": 1}
        monkeypatch.setattr(lookup, "config", lambda *args, **shape: config)
        hidden = testing.clustered(2500, 16, dtype=torch.bfloat16)[None]
        sample = testing.Sample("long", (hidden, testing.clustered(150, 16, dtype=torch.bfloat16, seed=4), 190), {
            "span_start": 1100, "span_len": 300})  # a block of text is 1024 long
        for outs in prune_twice(launches, "prune_topk", sample, path):
            testing.assert_prune_topk(outs, *sample.args, **sample.kwargs)

    @pytest.mark.parametrize("path", PATHS)
    def test_many_sequences(launches, path):
        """More sequences than the preparing kernel and the last program out take in one step, most of them empty."""
        row = torch.arange(132)
        lengths = torch.where((row % 16 == 0) | (row > 126), 1 + row % 4, 0)
        cu = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(torch.int32)
        k = (lengths // 2).to(torch.int32)
        total = int(cu[-1])
        hidden, kv = testing.clustered(total, 8), [testing.rand(1, total, 4)]
        protos = testing.clustered(3, 8, seed=4)
        sample = testing.Sample("many", (hidden, protos, cu, k, int(k.sum()), kv), {})
        want = testing.run("prune_topk_varlen", "reference", *sample.args)
        for hidden, kv, indices, scores, cu in prune_twice(launches, "prune_topk_varlen", sample, path):
            assert_same_bytes((hidden, kv, indices.long(), cu), (want[0], want[1], want[2], want[4]))
            testing.assert_scores(scores, sample.args[0], sample.args[1])

    @pytest.mark.parametrize("path", PATHS)
    def test_caches_beyond_the_parameters_of_one_launch(launches, monkeypatch, path):
        monkeypatch.setattr(_triton, "PARAMETER_WORDS", 64 + 40)
        kv = [testing.rand(2, 1, 9, 4, seed=i) for i in range(20)]
        sample = testing.Sample("caches", (testing.rand(2, 9, 8), testing.rand(3, 8, seed=1), 4, kv), {})
        for outs in prune_twice(launches, "prune_topk", sample, path):
            testing.assert_prune_topk(outs, *sample.args)
        assert launches.kernels.count(gather_kernel) == (2 if path == "one_launch" else 3)

    def test_a_row_does_not_depend_on_its_neighbours():
        hidden, protos = testing.clustered(90, 48, dtype=torch.float16).view(2, 45, 48), testing.clustered(
            11, 48, dtype=torch.float16, seed=4)
        both = testing.run("prune_topk", "triton", hidden, protos, 12)
        for row in range(2):
            alone = testing.run("prune_topk", "triton", hidden[row:row + 1], protos, 12)
            assert_same_bytes([t[row:row + 1] for t in flat(both)], list(flat(alone)))

    def test_sparse_values_are_exact():
        """Small integers: every product and sum is exact, so are the scores, up to the norm of one rounding each."""
        hidden = (testing.rand(1, 50, 64) * 2).round()
        protos = (testing.rand(70, 64, seed=1) * 2).round()
        scores, argmax = testing.run("prototype_scores", "triton", hidden, protos, metric="dot")
        similarity = testing.oracle_similarity(hidden, protos, "dot")
        np.testing.assert_array_equal(scores.numpy(), similarity.max(-1))
        np.testing.assert_array_equal(argmax.numpy(), similarity.argmax(-1))
