"""Selections with quotas, thresholds and nucleus sums, and the split of a budget."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtkernels.testing import rand

from ..call import Call
from ..case import Case, Counts
from .family import Family

F32 = torch.float32
_BOTH = ("cpu", "gpu")
_LENGTHS = (576, 1024, 196, 2880, 64, 1500, 729, 1)


def varlen_eager(scores: Tensor, lengths: tuple[int, ...], ks: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    kept, first = [], 0
    for length, k in zip(lengths, ks, strict=True):
        kept.append(first + scores[first:first + length].topk(k, sorted=False).indices.sort().values)
        first += length
    return torch.cat(kept), torch.tensor([0, *ks], device=scores.device).cumsum(0).to(torch.int32)


def quota_eager(scores: Tensor, frames: int, k: int, quota: int) -> Tensor:
    """The best of each frame are lifted over all others, then one selection. Frames are equally long."""
    best = scores.view(len(scores), frames, -1).topk(quota).indices
    lifted = torch.zeros_like(scores).view(len(scores), frames, -1).scatter_(-1, best, 4.0).view_as(scores)
    return (scores + lifted).topk(k, sorted=False).indices.sort().values


def threshold_eager(scores: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Positions that pass, to the front by a stable sort; needs no synchronisation either."""
    passes = scores > threshold
    counts = passes.sum(-1)
    order = (~passes).to(torch.uint8).sort(dim=-1, stable=True).indices
    place = torch.arange(scores.shape[1], device=scores.device)
    cu_seqlens = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return torch.where(place < counts[:, None], order, -1), counts.to(torch.int32), cu_seqlens.to(torch.int32)


def top_p_eager(scores: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor]:
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    before = ordered.double().cumsum(-1) - ordered
    count = (before < p * ordered.double().sum(-1, keepdim=True)).sum(-1)
    place = torch.arange(scores.shape[1], device=scores.device)
    kept = torch.where(place < count[:, None], order, scores.shape[1]).sort(-1).values
    cu_seqlens = torch.nn.functional.pad(count.cumsum(0), (1, 0))
    return torch.where(kept < scores.shape[1], kept, -1), count.to(torch.int32), cu_seqlens.to(torch.int32)


def budget_eager(weights: Tensor, total: int) -> Tensor:
    """Largest remainders in float64."""
    share = weights.double() / weights.double().sum(-1, keepdim=True) * total
    floor = share.floor()
    missing = total - floor.sum(-1, keepdim=True)
    rank = (floor - share).argsort(dim=-1, stable=True).argsort(-1)
    return (floor + (rank < missing)).to(torch.int32)


def _scores(case: Case, device: torch.device) -> Tensor:
    return (0.8 + 0.05 * rand(case.B, case.N, seed=11)).to(device)


def _varlen(case: Case, device: torch.device) -> Call:
    scores = (0.8 + 0.05 * rand(sum(case.lengths), seed=11)).to(device)
    cu_seqlens = torch.tensor([0, *case.lengths]).cumsum(0).to(torch.int32).to(device)
    args = (scores, cu_seqlens, torch.tensor(case.ks, dtype=torch.int32, device=device), case.kept)
    return Call(args, {}, (scores, case.lengths, case.ks), "generated cosines")


def _quota(case: Case, device: torch.device) -> Call:
    scores, quota = _scores(case, device), case.k // case.F // 2
    frames = (torch.arange(case.F + 1) * (case.N // case.F)).to(torch.int32).to(device)
    return Call((scores, frames, case.k, quota), {}, (scores, case.F, case.k, quota), "generated cosines")


def _threshold(case: Case, device: torch.device) -> Call:
    args = (_scores(case, device), 0.83)
    return Call(args, {}, args, "generated cosines")


def _weights(case: Case, device: torch.device) -> Call:
    args = (rand(case.B, case.N, seed=11).softmax(-1).to(device), 0.9)
    return Call(args, {}, args, "softmax of generated logits")


def _budget(case: Case, device: torch.device) -> Call:
    args = (rand(case.B, case.F, seed=11).softmax(-1).to(device), case.N)
    return Call(args, {}, args, "softmax of generated logits")


def _same(case: Case, call: Call, theirs: Any, ours: Any) -> None:
    """Distinct scores leave no choice, so every correct answer is the same."""
    a, b = ((theirs,), (ours,)) if isinstance(ours, Tensor) else (theirs, ours)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y), "the selections differ"


def _near(case: Case, call: Call, theirs: tuple, ours: tuple) -> None:
    """A sum in floating point may stop one token earlier or later than the exact one."""
    assert int((theirs[1] - ours[1]).abs().max()) <= 1, "the counts differ"


def _near_budget(case: Case, call: Call, theirs: Tensor, ours: Tensor) -> None:
    assert torch.equal(theirs.sum(-1), ours.sum(-1)), "the totals differ"
    assert int((theirs - ours).abs().max()) <= 1, "the shares differ"


def _by(eager: Callable, compare: Callable) -> Callable:
    """Ours is compared with the eager form, which shares no code with it."""
    return lambda case, call, outputs: compare(case, call, eager(*call.peer_args), outputs)


def _tokens_and_kept(c: Case) -> Counts:
    return Counts(4 * c.tokens + 8 * c.kept, 0)


def _ragged(c: Case) -> Counts:
    return Counts(12 * c.tokens, 0)


OPS = {
    "select_topk_varlen": Family(
        (Case("select_topk_varlen", "8-sequences-6970", F32, _BOTH, lengths=_LENGTHS),
         Case("select_topk_varlen", "tiny", F32, ("quick",), lengths=(20, 1, 15))),
        _tokens_and_kept, _varlen, {"eager": varlen_eager}, _by(varlen_eager, _same), _same),
    "select_quota": Family(
        (Case("select_quota", "64x196", F32, _BOTH, N=64 * 196, F=64),
         Case("select_quota", "tiny", F32, ("quick",), B=2, N=40, F=4, keep=0.4)),
        _tokens_and_kept, _quota, {"eager": quota_eager}, _by(quota_eager, _same), _same),
    "select_threshold": Family(
        (Case("select_threshold", "64x729", F32, _BOTH, B=64, N=729),
         Case("select_threshold", "1x100352", F32, _BOTH, N=100352),
         Case("select_threshold", "tiny", F32, ("quick",), B=2, N=40)),
        _ragged, _threshold, {"eager": threshold_eager}, _by(threshold_eager, _same), _same),
    "select_top_p": Family(
        (Case("select_top_p", "32x4096", F32, _BOTH, B=32, N=4096),
         Case("select_top_p", "tiny", F32, ("quick",), B=2, N=40)),
        _ragged, _weights, {"eager": top_p_eager}, _by(top_p_eager, _near), _near),
    "allocate_budget": Family(
        (Case("allocate_budget", "4x64-of-12544", F32, _BOTH, B=4, F=64, N=12544),
         Case("allocate_budget", "tiny", F32, ("quick",), B=2, F=5, N=40)),
        lambda c: Counts(8 * c.B * c.F, 0), _budget, {"eager": budget_eager}, _by(budget_eager, _near_budget),
        _near_budget),
}
