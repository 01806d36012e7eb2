"""Scores against the previous frame, statistics of rows, residuals outside a subspace."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vtkernels.testing import rand

from ..call import Call
from ..case import Case, Counts
from .family import Family

F32, BF16 = torch.float32, torch.bfloat16
_BOTH = ("cpu", "gpu")


def _with_first(scores: Tensor) -> Tensor:
    return torch.cat([torch.full_like(scores[:, :1], -torch.inf), scores], 1)


def temporal_eager(tokens: Tensor) -> Tensor:
    unit = F.normalize(tokens, dim=-1)
    return _with_first((unit[:, 1:] * unit[:, :-1]).sum(-1).float())


def temporal_similarity(tokens: Tensor) -> Tensor:
    return _with_first(F.cosine_similarity(tokens[:, 1:], tokens[:, :-1], dim=-1).float())


def temporal_better(tokens: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(tokens, dim=-1)
    return _with_first(((tokens[:, 1:] * tokens[:, :-1]).sum(-1) / (norm[:, 1:] * norm[:, :-1])).float())


def statistics_eager(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    positive = rows.float().clamp_min(0)
    p = positive / positive.sum(-1, keepdim=True)
    return rows.float().abs().sum(-1), torch.linalg.vector_norm(rows.float(), dim=-1), -torch.xlogy(p, p).sum(-1)


def residual_eager(tokens: Tensor, basis: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tokens - (tokens @ basis.mT) @ basis, dim=-1).float()


def _frames(case: Case, device: torch.device) -> Call:
    still, moving = rand(case.B, 1, case.N, case.D), rand(case.B, case.F, case.N, case.D, seed=1)
    args = ((still + 0.5 * moving).to(case.dtype).to(device),)
    return Call(args, {}, args, "generated")


def _rows(case: Case, device: torch.device) -> Call:
    args = (rand(case.B, case.N, case.D, dtype=case.dtype).to(device),)
    return Call(args, {}, args, "generated")


def _with_basis(case: Case, device: torch.device) -> Call:
    basis = torch.linalg.qr(rand(case.B, case.D, case.P, seed=2)).Q.mT.contiguous()
    args = (rand(case.B, case.N, case.D, dtype=case.dtype).to(device), basis.to(case.dtype).to(device))
    return Call(args, {}, args, "generated")


def _frame_counts(c: Case) -> Counts:
    tokens = c.B * c.F * c.N
    return Counts(tokens * (c.D * c.dtype.itemsize + 4), 4 * tokens * c.D)


def _row_counts(c: Case) -> Counts:
    return Counts(c.tokens * (c.D * c.dtype.itemsize + 12), 5 * c.tokens * c.D)


def _residual_counts(c: Case) -> Counts:
    return Counts((c.tokens + c.B * c.P) * c.D * c.dtype.itemsize + 4 * c.tokens, 4 * c.tokens * c.P * c.D)


def _close(got: Tensor, gold: Tensor, allowed: float) -> None:
    assert got.shape == gold.shape, f"shape {tuple(got.shape)}, expected {tuple(gold.shape)}"
    finite = gold.isfinite()
    assert torch.equal(finite, got.isfinite()), "infinite in other places"
    error = (got.double() - gold.double()).abs()[finite].max()
    assert float(error) <= allowed * max(1.0, float(gold[finite].abs().max())), f"off by {float(error):.3g}"


def _check_frames(case: Case, call: Call, outputs: Tensor) -> None:
    tokens = call.args[0][:, :, ::max(1, case.N // 16)]
    _close(outputs[:, :, ::max(1, case.N // 16)], temporal_better(tokens.double()), 1e-5)


def _check_rows(case: Case, call: Call, outputs: tuple) -> None:
    for got, gold in zip(outputs, statistics_eager(call.args[0].double()), strict=True):
        _close(got, gold, 1e-4)


def _check_residual(case: Case, call: Call, outputs: Tensor) -> None:
    _close(outputs, residual_eager(*(t.double() for t in call.args)), 1e-5)


def _peer(case: Case, call: Call, theirs: Tensor | tuple, ours: Tensor | tuple) -> None:
    allowed = 1e-4 if case.dtype == F32 else 3e-2
    if isinstance(ours, Tensor):
        theirs, ours = (theirs,), (ours,)
    for a, b in zip(theirs, ours, strict=True):
        _close(a, b, allowed)


OPS = {
    "temporal_scores": Family(
        (Case("temporal_scores", "64x196x3584", F32, _BOTH, F=64, N=196, D=3584),
         Case("temporal_scores", "64x196x3584", BF16, _BOTH, F=64, N=196, D=3584),
         Case("temporal_scores", "tiny", F32, ("quick",), B=2, F=3, N=10, D=8)),
        _frame_counts, _frames,
        {"eager": temporal_eager, "similarity": temporal_similarity, "better": temporal_better},
        _check_frames, _peer),
    "row_statistics": Family(
        (Case("row_statistics", "12544x3584", F32, _BOTH, N=12544, D=3584),
         Case("row_statistics", "tiny", F32, ("quick",), B=2, N=10, D=8)),
        _row_counts, _rows, {"eager": statistics_eager}, _check_rows, _peer),
    "subspace_residual": Family(
        (Case("subspace_residual", "H32-2880x128-r32", F32, _BOTH, B=32, N=2880, D=128, P=32),
         Case("subspace_residual", "tiny", F32, ("quick",), B=2, N=10, D=8, P=3)),
        _residual_counts, _with_basis, {"eager": residual_eager}, _check_residual, _peer),
}
