"""Seeded inputs of a case."""

import torch
from torch import Tensor

from vtkernels.testing import rand

from . import families
from .call import Call
from .case import Case
from .features import features


def make(case: Case, device: str | torch.device = "cpu") -> Call:
    maker = families.OPS[case.op].make if case.op in families.OPS else _MAKERS[case.op]
    return maker(case, torch.device(device))


def caches(case: Case, device: torch.device) -> list[Tensor]:
    """K and V of every layer, [B, H, N, d], or [H, T, d] for packed sequences."""
    shape = (case.H, case.tokens, case.d) if case.lengths else (case.B, case.H, case.N, case.d)
    generator = torch.Generator(device).manual_seed(9)
    return [torch.randn(shape, generator=generator, dtype=case.dtype, device=device) for _ in range(2 * case.layers)]


def kept_positions(case: Case, device: torch.device) -> Tensor:
    """[B, k] ascending positions drawn at random."""
    order = torch.rand(case.B, case.N, generator=torch.Generator().manual_seed(10)).argsort(-1)
    return order[:, :case.k].sort(-1).values.to(device)


def _prototype_scores(case: Case, device: torch.device) -> Call:
    tokens, prototypes, source = features(case)
    args = (tokens.view(case.B, case.N, case.D).to(device), prototypes.to(device))
    return Call(args, {}, args, source)


def _select_topk(case: Case, device: torch.device) -> Call:
    scores = 0.8 + 0.05 * rand(case.B, case.N, seed=11)  # largest cosines crowd together
    args = (scores.to(device), case.k)
    return Call(args, {"largest": False}, args, "generated cosines")


def _gather_tokens(case: Case, device: torch.device) -> Call:
    hidden = rand(case.B, case.N, case.D, dtype=case.dtype, seed=12).to(device)
    position_ids = torch.arange(3 * case.N, device=device).view(3, 1, case.N).repeat(1, case.B, 1)
    args = ([hidden, position_ids], kept_positions(case, device))
    return Call(args, {"token_dims": [1, 2]}, (*args, (1, 2)), "generated")


def _gather_kv(case: Case, device: torch.device) -> Call:
    args = (caches(case, device), kept_positions(case, device))
    return Call(args, {}, args, "generated")


def _prune_topk(case: Case, device: torch.device) -> Call:
    tokens, prototypes, source = features(case)
    hidden = tokens.view(case.B, case.N, case.D).to(device)
    args = (hidden, prototypes.to(device), case.k, caches(case, device))
    return Call(args, {}, args, source)


def _prune_topk_varlen(case: Case, device: torch.device) -> Call:
    tokens, prototypes, source = features(case)
    hidden, prototypes, kv = tokens.to(device), prototypes.to(device), caches(case, device)
    cu_seqlens = torch.tensor([0, *case.lengths]).cumsum(0).to(torch.int32).to(device)
    ks = torch.tensor(case.ks, dtype=torch.int32, device=device)
    return Call((hidden, prototypes, cu_seqlens, ks, case.kept, kv), {},
                (hidden, prototypes, case.lengths, case.ks, ks, kv), source)


_MAKERS = {
    "prototype_scores": _prototype_scores,
    "select_topk": _select_topk,
    "gather_tokens": _gather_tokens,
    "gather_kv": _gather_kv,
    "prune_topk": _prune_topk,
    "prune_topk_varlen": _prune_topk_varlen,
}
