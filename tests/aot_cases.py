"""What is compiled ahead of time: every shipped launch configuration, in every dtype that it is for."""

from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import aot
import aot_calls
import torch

from vtkernels import _library
from vtkernels.tuning import lookup

ARCH_OF = {"nvidia-h200": "sm_90", "nvidia-h100-80gb-hbm3": "sm_90"}
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


def knows_dtype(op: str) -> bool:
    """Selection and gathering do not."""
    return op in SCORING | aot_calls.FLOATING


def cases() -> Iterator[tuple[Case, str]]:
    """Every shipped entry, dtype and arch; then the variants of a kernel that the arguments select."""
    for path in sorted(lookup.SHIPPED.glob("*/*.json")):
        op, gpu = path.stem, path.parent.name
        archs = aot.ARCHS if gpu == "default" else (ARCH_OF[gpu],)
        shared = lookup.load(lookup.SHIPPED / "default" / path.name, op) if gpu != "default" else []
        for i, entry in enumerate(lookup.load(path, op)):
            if entry in shared:
                continue  # compiled as an entry of the default table
            for dtype in entry["match"].get("dtype", DTYPES) if knows_dtype(op) else ("float32",):
                for arch in archs:
                    yield Case(op, gpu, i, dtype), arch
    for op, dtype, i, variant in VARIANTS:
        for arch in ("sm_90", "gfx942"):
            yield Case(op, "default", i, dtype, variant), arch


def launches(case: Case) -> list[aot.Launch]:
    return launches_of(case, lookup.load(lookup.SHIPPED / case.gpu / f"{case.op}.json", case.op)[case.entry])


def launches_of(case: Case, entry: dict) -> list[aot.Launch]:
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
