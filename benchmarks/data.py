"""Seeded inputs of a case: clustered features, the published codebook where its width fits."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtkernels.testing import clustered, rand

from .registry import Case

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CODEBOOK = SHARED / "redundancy_codebook_llava_onevision_7b.safetensors"


@dataclass
class Call:
    """One call of an op. Peers take `peer_args`: the same tensors, with metadata as host numbers where that helps."""

    args: tuple
    kwargs: dict[str, Any]
    peer_args: tuple
    source: str
    scratch: dict[str, Tensor] = field(default_factory=dict)

    def clone(self) -> "Call":
        """The same call on other memory, for rotating buffers."""
        copies: dict[int, Tensor] = {}

        def copy(value: Any) -> Any:
            if isinstance(value, Tensor):
                return copies.setdefault(id(value), value.clone())
            return type(value)(copy(v) for v in value) if isinstance(value, (list, tuple)) else value

        kwargs = {name: copy(v) for name, v in self.kwargs.items()}
        return Call(copy(self.args), kwargs, copy(self.peer_args), self.source)


def make(case: Case, device: str | torch.device = "cpu") -> Call:
    return _MAKERS[case.op](case, torch.device(device))


@cache
def published_codebook() -> Tensor | None:
    """[45, 3584] prototypes of a real model, or None where the file is not at hand."""
    if not CODEBOOK.is_file():
        return None
    from safetensors.torch import load_file
    return load_file(str(CODEBOOK))["prototypes"].float()


def features(case: Case) -> tuple[Tensor, Tensor, str]:
    """[T, D] tokens, [P, D] prototypes, and where they come from. Tokens lie near prototypes, some more than others."""
    book = published_codebook()
    pick = torch.Generator().manual_seed(1)
    if book is not None and book.shape[1] == case.D:
        prototypes, source = book[:case.P], "published codebook"
        if len(book) < case.P:
            pairs = torch.randint(len(book), (case.P - len(book), 2), generator=pick)
            prototypes = torch.cat([book, book[pairs[:, 0]] + book[pairs[:, 1]]])
            source = f"published codebook and {len(pairs)} sums of two entries"
    else:
        prototypes, source = clustered(case.P, case.D, seed=2), "generated clusters"
    nearest = torch.randint(case.P, (case.tokens,), generator=pick)
    tokens = clustered(case.tokens, case.D, seed=6)
    tokens += torch.rand(case.tokens, 1, generator=pick) * prototypes[nearest]
    return tokens.to(case.dtype), prototypes.to(case.dtype), source


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
