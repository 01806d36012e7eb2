"""The named shapes of every op: those of the first ops here, the others in `families`."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch

import torch

from . import families
from .case import COUNTS, DTYPE_NAMES, Case, Counts

__all__ = ["CASES", "COUNTS", "DTYPE_NAMES", "Case", "Counts", "select"]


def _scoring(c: Case) -> Counts:
    """Tokens and prototypes in, an fp32 score per token out; the dot products and the norms of both sides."""
    read = (c.tokens + c.P) * c.D * c.dtype.itemsize
    return Counts(read + 4 * c.tokens, 2 * c.tokens * c.P * c.D + 2 * (c.tokens + c.P) * c.D)


def _kv_bytes(c: Case) -> int:
    """Kept rows of K and V of every layer, read and written."""
    return 2 * c.layers * 2 * c.kept * c.H * c.d * c.dtype.itemsize


def _prototype_scores(c: Case) -> Counts:
    scoring = _scoring(c)
    return Counts(scoring.bytes + 8 * c.tokens, scoring.flops)  # int64 argmax


def _select_topk(c: Case) -> Counts:
    return Counts(4 * c.tokens + 8 * c.kept, 0)


def _gather_tokens(c: Case) -> Counts:
    """Hidden states and three int64 position ids of each kept token, read and written; the indices read."""
    return Counts(2 * c.kept * (c.D * c.dtype.itemsize + 3 * 8) + 8 * c.kept, 0)


def _gather_kv(c: Case) -> Counts:
    return Counts(_kv_bytes(c) + 8 * c.kept, 0)


def _prune_topk(c: Case) -> Counts:
    """Scoring, kept hidden rows written (they were read for the scores), caches, int64 indices."""
    scoring = _scoring(c)
    return Counts(scoring.bytes + c.kept * c.D * c.dtype.itemsize + _kv_bytes(c) + 8 * c.kept, scoring.flops)


def _prune_topk_varlen(c: Case) -> Counts:
    """As dense, with the int32 counts in, and int32 cu_seqlens in and out."""
    dense, batch = _prune_topk(c), len(c.lengths)
    return Counts(dense.bytes + 4 * (batch + 2 * (batch + 1)), dense.flops)


COUNTS |= {
    "prototype_scores": _prototype_scores,
    "select_topk": _select_topk,
    "gather_tokens": _gather_tokens,
    "gather_kv": _gather_kv,
    "prune_topk": _prune_topk,
    "prune_topk_varlen": _prune_topk_varlen,
}

F32, BF16 = torch.float32, torch.bfloat16

# (B, N, D, P, H, d) of the project's ten CPU figures: fp32 and bf16, keep 20 %, K and V of one layer.
TEN = {
    "576x1024-P64": (1, 576, 1024, 64, 16, 64),
    "576x4096-P454": (1, 576, 4096, 454, 32, 128),
    "2880x4096-P256": (1, 2880, 4096, 256, 32, 128),
    "4096x3584-P64": (1, 4096, 3584, 64, 4, 128),
    "16x196x3584-P45": (16, 196, 3584, 45, 4, 128),
}
LENGTHS = (576, 1024, 196, 2880, 64, 1500, 729, 1)


def _prune_cases() -> Iterable[Case]:
    """The GPU goals come first, so that a run with a time limit reaches them. "tokens": hidden states, no caches."""
    for n, d, p, goal in ((576, 4096, 64, 8), (2880, 4096, 256, 16), (12544, 3584, 64, 45), (100352, 3584, 64, None)):
        yield Case("prune_topk", f"{n}x{d}-P{p}-tokens", BF16, ("gpu",), N=n, D=d, P=p, keep=0.25, goal_us=goal)
    for shape, (b, n, d, p, heads, width) in TEN.items():
        for dtype in (F32, BF16):
            groups = ("cpu", "ten", "gpu") if shape == "2880x4096-P256" else ("cpu", "ten")
            yield Case("prune_topk", shape, dtype, groups, b, n, d, p, heads, width, layers=1)
    yield Case("prune_topk", "2880x4096-P64-32-layers", BF16, ("gpu",), 1, 2880, 4096, 64, 8, 128, layers=32, keep=0.25)
    yield Case("prune_topk", "tiny", F32, ("quick",), 2, 40, 32, 5, 2, 8, layers=1)


def _stage_cases() -> Iterable[Case]:
    both = ("cpu", "gpu")
    yield Case("gather_kv", "32-layers-2880-H8", BF16, both, N=2880, H=8, d=128, layers=32, keep=0.25,
               goal_copy_share=0.85)
    yield Case("gather_kv", "32-layers-12544-H8", BF16, ("gpu",), N=12544, H=8, d=128, layers=32, keep=0.25)
    yield Case("gather_kv", "1-layer-2880-H32", BF16, both, N=2880, H=32, d=128, layers=1)
    yield Case("gather_kv", "4-layers-4x576-H8", F32, ("cpu",), B=4, N=576, H=8, d=128, layers=4)
    yield Case("gather_kv", "tiny", F32, ("quick",), B=2, N=40, H=2, d=8, layers=3)
    for b, n, keep in ((1, 576, 0.2), (1, 2880, 0.2), (64, 196, 0.25), (1, 12544, 0.25), (1, 100352, 0.25)):
        yield Case("select_topk", f"{b}x{n}", F32, both, B=b, N=n, keep=keep)
    yield Case("select_topk", "tiny", F32, ("quick",), B=2, N=40)
    for b, n, d in ((1, 2880, 4096), (16, 196, 3584)):
        yield Case("gather_tokens", f"{b}x{n}x{d}", BF16, both, B=b, N=n, D=d)
    yield Case("gather_tokens", "tiny", F32, ("quick",), B=2, N=40, D=8)
    for n, d, p in ((576, 4096, 454), (4096, 3584, 64)):
        for dtype in (F32, BF16):
            yield Case("prototype_scores", f"{n}x{d}-P{p}", dtype, both, N=n, D=d, P=p)
    yield Case("prototype_scores", "tiny", F32, ("quick",), B=2, N=40, D=32, P=5)
    for dtype in (F32, BF16):
        yield Case("prune_topk_varlen", "8-sequences-6970x3584-P64", dtype, both, D=3584, P=64, H=4, d=128, layers=1,
                   lengths=LENGTHS)
    yield Case("prune_topk_varlen", "tiny", F32, ("quick",), D=32, P=5, H=2, d=8, layers=1, lengths=(20, 1, 15))


COUNTS |= {op: family.counts for op, family in families.OPS.items()}
CASES = (*_prune_cases(), *_stage_cases(), *(c for family in families.OPS.values() for c in family.cases))


def select(ops: Sequence[str] = (), shapes: Sequence[str] = (), group: str = "cpu") -> list[Case]:
    """Cases of these ops (all when empty) whose name matches one of these patterns, or else that are in the group."""
    unknown = sorted(set(ops) - set(COUNTS))
    if unknown:
        raise ValueError(f"op {', '.join(unknown)} has no benchmark, allowed: {', '.join(COUNTS)}")
    cases = [c for c in CASES if not ops or c.op in ops]
    if not shapes:
        return [c for c in cases if group in c.groups]
    found = [c for c in cases if any(fnmatch(c.name, s) or fnmatch(c.shape, s) for s in shapes)]
    if not found:
        raise ValueError(f"no shape matches {', '.join(shapes)}, allowed: {', '.join(sorted({c.name for c in cases}))}")
    return found
