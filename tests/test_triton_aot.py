"""Every Triton kernel with every shipped configuration, compiled for GPUs that are not there.

Each case is what the launcher itself would launch. Gates: no spills, registers and shared memory within the arch's
limits, and no multiplication narrower than 64 bits, so that no offset can overflow.
"""

import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import aot
import aot_calls
import pytest
import torch

from vtkernels import _library
from vtkernels.tuning import lookup

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SCORING = {"prototype_scores", "prune_topk", "prune_topk_varlen"}
VARIANTS = (("prune_topk", "bfloat16", 0, "options"), ("prune_topk", "bfloat16", 0, "strided"),
            ("prune_topk", "bfloat16", 0, "layers"), ("prune_topk", "bfloat16", 0, "bytes"),
            ("prune_topk", "float32", 3, "strided"), ("prune_topk_varlen", "bfloat16", 0, "options"),
            ("prototype_scores", "bfloat16", 0, "strided"), ("prototype_scores", "float32", 3, "strided"),
            ("prototype_scores", "bfloat16", 0, "l2"), ("prototype_scores", "float32", 3, "l2"))


class Case(NamedTuple):
    op: str
    gpu: str
    entry: int
    dtype: str
    variant: str = "plain"

    def __str__(self) -> str:
        return "-".join(str(field) for field in self)


def cases() -> Iterator[tuple[Case, str]]:
    """Every shipped entry, dtype and arch; then the variants of a kernel that the arguments select."""
    for path in sorted(lookup.SHIPPED.glob("*/*.json")):
        op, gpu = path.stem, path.parent.name
        archs = ("sm_90",) if gpu == "nvidia-h200" else aot.ARCHS
        for i, entry in enumerate(lookup.load(path, op)):
            # Selection and gathering do not know the dtype.
            takes = SCORING | aot_calls.FLOATING
            for dtype in entry["match"].get("dtype", DTYPES) if op in takes else ("float32",):
                for arch in archs:
                    yield Case(op, gpu, i, dtype), arch
    for op, dtype, i, variant in VARIANTS:
        for arch in ("sm_90", "gfx942"):
            yield Case(op, "default", i, dtype, variant), arch


def launches(case: Case) -> list[aot.Launch]:
    entry = lookup.load(lookup.SHIPPED / case.gpu / f"{case.op}.json", case.op)[case.entry]
    if case.op in aot_calls.CALLS:
        with mock.patch.object(lookup, "config", return_value=entry["config"]):
            return aot.record(lambda: aot_calls.run(case.op, entry["match"], DTYPES[case.dtype]))
    n, d, p = (entry["match"].get(name, size) for name, size in (("n", 4096), ("d", 4096), ("p", 64)))
    dtype = DTYPES[case.dtype]
    step = 2 if case.variant == "strided" else 1
    d = d // 2 - 3 if case.variant == "strided" else d
    kv_dtypes = {"layers": [dtype] * 64, "bytes": [torch.int64, torch.int32, torch.int16, torch.int8]}
    kv = [torch.empty(1, 8, n, 128 if case.variant != "bytes" else 1, dtype=t)
          for t in kv_dtypes.get(case.variant, [dtype] * 2)]
    hidden, prototypes = torch.empty(1, n, d * step, dtype=dtype)[..., ::step], torch.empty(p, d, dtype=dtype)
    options = case.variant == "options"
    extra = {"prototype_rnorm": torch.empty(p), "keep_similar": True} if options else {}
    word = torch.zeros(1, dtype=torch.int32)
    k = n // 4

    def call() -> None:
        if case.op == "prototype_scores":
            from vtkernels.score.prototype_scores.triton import prototype_scores_out

            scores, argmax = _library.allocate(_library.CONTRACTS["prototype_scores"](hidden, prototypes))
            prototype_scores_out(hidden, prototypes, metric="l2" if case.variant == "l2" else "cosine", scores=scores,
                                 argmax=argmax)
        elif case.op == "select_topk":
            from vtkernels.select.select_topk.triton import select_topk_out

            for largest in (True, False):
                select_topk_out(torch.empty(1, n), k, largest=largest, out=torch.empty(1, k, dtype=torch.int64))
        elif case.op in ("gather_tokens", "gather_kv"):
            from vtkernels.compact.gather_kv.triton import gather_kv_out
            from vtkernels.compact.gather_tokens.triton import gather_tokens_out

            run = gather_tokens_out if case.op == "gather_tokens" else gather_kv_out
            indices = torch.empty(1, k, dtype=torch.int64)
            dims = {"token_dims": [2, 2]} if run is gather_tokens_out else {}
            own = [] if run is gather_tokens_out else [indices.expand(1, 8, k), indices.expand(len(kv), 1, 8, k)]
            for each in (indices, *own):  # shared, of each head, of each tensor and head
                run(kv, each, out=[torch.empty_like(t[:, :, :k]) for t in kv], status=word, **dims)
            empty = [t[..., :0] for t in kv]
            run(empty, indices, out=[torch.empty_like(t[:, :, :k]) for t in empty], status=word, **dims)
        elif case.op == "prune_topk":
            from vtkernels.fused.prune_topk.triton import prune_topk_out

            more = {**extra, "span_starts": word, "span_len": n - 1} if options else extra
            spec = _library.CONTRACTS["prune_topk"](hidden, prototypes, k, kv, **more)
            prune_topk_out(hidden, prototypes, k, kv, **more, **outputs("prune_topk", spec, options),
                           status=word if options else None)
        else:
            from vtkernels.fused.prune_topk_varlen.triton import prune_topk_varlen_out

            more = {**extra, "span_starts": word, "span_lens": word} if options else extra
            args = (hidden[0], prototypes, torch.zeros(2, dtype=torch.int32), word, k, [t[0] for t in kv])
            spec = _library.CONTRACTS["prune_topk_varlen"](*args, **more)
            prune_topk_varlen_out(*args, **more, **outputs("prune_topk_varlen", spec, options),
                                  status=word if options else None)

    with mock.patch.object(lookup, "config", return_value=entry["config"]):
        return aot.record(call)


def outputs(op: str, spec: tuple, int32: bool) -> dict[str, object]:
    buffers = dict(zip(_library.OUT_ARGS[op], _library.allocate(spec), strict=True))
    return {**buffers, "out_indices": buffers["out_indices"].to(torch.int32)} if int32 else buffers


def build(case: Case, arch: str) -> list[dict]:
    """Compile the launches of a case, in a process of its own. Returns what the gates look at."""
    report = []
    for launch in launches(case):
        kernel = aot.compiled(launch, arch)
        narrow = [line.strip() for line in kernel.asm["ttir"].splitlines()
                  if "arith.muli" in line and not re.search(r": (tensor<[0-9x]*)?i64", line)]
        # The AMD backend of Triton 3.9 can fold a product away with what follows it, without a word.
        lost = arch.startswith("gfx") and "tt.dot" in kernel.asm["ttir"] and "v_mfma" not in kernel.asm["amdgcn"]
        report.append({"lost": lost, "kernel": launch.kernel.__name__, "narrow": narrow, **aot.resources(kernel, arch)})
    return report


def constants(launch: aot.Launch) -> tuple:
    """What of a launch decides which compiled kernel runs, beside the alignment of pointers."""
    words = tuple(len(value) for value in launch.args if isinstance(value, tuple))
    return launch.kernel.__name__, tuple(launch.options.items()), words


@pytest.mark.parametrize("op", ["prune_topk", "select_topk", "prototype_scores"])
def test_the_number_of_tokens_does_not_recompile(op: str) -> None:
    def variant(n: int, k: int) -> list[tuple]:
        entry = {"match": {"n": n, "d": 64, "p": 9}, "config": lookup.config(op, "default", torch.float16, n=600)}
        with mock.patch.object(lookup, "load", return_value=[entry]):
            recorded = launches(Case(op, "default", 0, "float16"))
        return [constants(launch) for launch in recorded]

    assert variant(1000, 10) == variant(641, 11) == variant(577, 12)


@pytest.fixture(scope="module")
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """All selected cases, compiling in two processes."""
    environment = {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    wanted = [item.callspec.params for item in request.session.items if item.path == Path(__file__)]
    with mock.patch.dict(os.environ, environment):
        os.environ.pop("TRITON_INTERPRET", None)
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            futures: dict[tuple[Case, str], Future] = {
                (p["case"], p["arch"]): pool.submit(build, p["case"], p["arch"]) for p in wanted if "case" in p}
            yield futures
            pool.shutdown(cancel_futures=True)


def marks(case: Case, arch: str) -> list:
    """The flagship in bfloat16 on all architectures and in every dtype on two of them, the variants, and the other ops
    on these two in the dtypes of either width; the rest is in the long suite."""
    flagship, both = case.op == "prune_topk", arch in ("sm_90", "gfx942")
    often = (both or case.dtype == "bfloat16") if flagship else both and case.dtype != "float16"
    return [] if often else [pytest.mark.long]


@pytest.mark.parametrize(("case", "arch"), [
    pytest.param(c, a, id=f"{c}-{a}", marks=marks(c, a)) for c, a in cases()])
def test_compiles_within_the_limits(builds: dict, case: Case, arch: str) -> None:
    report = builds[case, arch].result()
    assert report, "the launcher launched nothing"
    for kernel in report:
        assert kernel["STACK"] == 0, f"{kernel['kernel']} spills {kernel['STACK']} bytes: {kernel}"
        assert kernel["REG"] <= aot.REGISTER_LIMIT[arch], kernel
        assert kernel["SHARED"] <= aot.SHARED_LIMIT[arch] * 1024, kernel
        assert not kernel["lost"], f"{kernel['kernel']} has lost its matrix products"
        assert kernel["narrow"] == [], f"{kernel['kernel']} multiplies in less than 64 bits"
