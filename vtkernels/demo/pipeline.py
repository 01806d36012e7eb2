"""Tokens in, gathered tokens and K/V out: by the separate ops, by the fused op, and by plain torch for comparison."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import vtkernels

from ..testing import oracle_similarity
from . import DemoError

HEADS, HEAD_DIM = 8, 64
WARMUP, REPEATS = 3, 20
TIE = 1e-5  # scores closer than this may rank either way in peers that round differently


class Pruned(NamedTuple):
    hidden: Tensor  # [1, k, D]
    kv: list[Tensor]  # 2 x [1, HEADS, k, HEAD_DIM]
    indices: Tensor  # [1, k]


@dataclass
class Timings:
    """Milliseconds, one list per name; or the reason why there is no time."""

    measured: dict[str, list[float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.measured[name])


def project_kv(hidden: Tensor, seed: int) -> list[Tensor]:
    """K and V `[1, HEADS, N, HEAD_DIM]` by fixed random projections, where a model has trained ones."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(2, hidden.shape[-1], HEADS * HEAD_DIM, generator=generator) / hidden.shape[-1] ** 0.5
    kv = (hidden @ weights.to(hidden.dtype)).unflatten(-1, (HEADS, HEAD_DIM))  # [2, N, HEADS, HEAD_DIM]
    return [t[None].transpose(1, 2).contiguous() for t in kv]


def bytes_of(hidden: Tensor, kv: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in (hidden, *kv))


class Race:
    """The same job done by several implementations, timed in turns; only those whose outputs agree get a time."""

    def __init__(self, prototypes: Tensor, rnorm: Tensor, k: int, compile_peer: bool) -> None:
        self.prototypes, self.rnorm, self.k = prototypes, rnorm, k
        self.unit = (prototypes.float() * rnorm[:, None]).to(prototypes.dtype)
        self.timings = Timings()
        self.peers: dict[str, Callable[[Tensor, list[Tensor]], Pruned]] = {
            "three ops": self.separate_ops, "eager": self.eager, "better eager": self.better_eager}
        if compile_peer:
            self.peers["torch.compile"] = torch.compile(self.better_eager, fullgraph=True)
        else:
            self.timings.refused["torch.compile"] = "not asked for (--no-compile)"

    def fused(self, hidden: Tensor, kv: list[Tensor]) -> tuple[Pruned, Tensor]:
        out, caches, indices, scores = vtkernels.prune_topk(hidden, self.prototypes, self.k, kv,
                                                            prototype_rnorm=self.rnorm)
        return Pruned(out, caches, indices), scores

    def separate_ops(self, hidden: Tensor, kv: list[Tensor]) -> Pruned:
        scores, _ = self.score(hidden)
        return self.gather(hidden, kv, self.select(scores))

    def score(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return vtkernels.prototype_scores(hidden, self.prototypes, prototype_rnorm=self.rnorm)

    def select(self, scores: Tensor) -> Tensor:
        return vtkernels.select_topk(scores, self.k, largest=False)

    def gather(self, hidden: Tensor, kv: list[Tensor], indices: Tensor) -> Pruned:
        return Pruned(vtkernels.gather_tokens([hidden], indices)[0], vtkernels.gather_kv(kv, indices), indices)

    def eager(self, hidden: Tensor, kv: list[Tensor]) -> Pruned:
        """As the methods' own code has it: normalise both sides, all similarities, maximum, top-k, sort, gather."""
        similarity = F.normalize(hidden, dim=-1) @ F.normalize(self.prototypes, dim=-1).T
        return self._take(hidden, kv, similarity.amax(-1))

    def better_eager(self, hidden: Tensor, kv: list[Tensor]) -> Pruned:
        """Unit prototypes prepared once, and the tokens' norms divided out after the maximum."""
        return self._take(hidden, kv, (hidden @ self.unit.T).amax(-1) / hidden.norm(dim=-1))

    def _take(self, hidden: Tensor, kv: list[Tensor], scores: Tensor) -> Pruned:
        indices = scores.topk(self.k, largest=False, sorted=False).indices.sort(-1).values
        rows = indices[0]
        return Pruned(hidden.index_select(1, rows), [t.index_select(2, rows) for t in kv], indices)

    def run(self, hidden: Tensor, kv: list[Tensor]) -> tuple[Pruned, Tensor]:
        """The fused result and its scores for one row of tokens, after timing everything on it."""
        result, scores = self.fused(hidden, kv)
        truth = oracle_similarity(hidden, self.prototypes).max(-1)  # [1, N] float64, independent of all of them
        if wrong := disagreement(result, hidden, kv, torch.from_numpy(truth), TIE):
            raise DemoError(f"prune_topk is wrong here, so no time is printed: {wrong}")
        calls: dict[str, Callable[[], object]] = {"prune_topk": lambda: self.fused(hidden, kv)}
        for name, peer in self.peers.items():
            reason = self._refusal(name, peer, hidden, kv, torch.from_numpy(truth))
            if reason:
                self.timings.refused.setdefault(name, reason)
            else:
                calls[name] = partial(peer, hidden, kv)
        if "three ops" in calls:
            own, _ = self.score(hidden)
            indices = self.select(own)
            calls |= {"score": lambda: self.score(hidden), "select": lambda: self.select(own),
                      "gather": lambda: self.gather(hidden, kv, indices)}
        for turn in range(WARMUP + REPEATS):
            for name, call in calls.items():
                elapsed = timed(call)
                if turn >= WARMUP:
                    self.timings.measured.setdefault(name, []).append(elapsed)
        return result, scores

    def _refusal(self, name: str, peer: Callable, hidden: Tensor, kv: list[Tensor], truth: Tensor) -> str | None:
        if name in self.timings.refused:
            return self.timings.refused[name]
        try:
            pruned = peer(hidden, kv)
        except Exception as error:
            if name != "torch.compile":
                raise
            # A compiler that is missing or fails surfaces as any of a dozen exceptions of torch.
            return f"cannot run here: {next(iter(str(error).splitlines()), type(error).__name__)}"
        return disagreement(pruned, hidden, kv, truth, _tie(hidden.dtype))


def disagreement(pruned: Pruned, hidden: Tensor, kv: Sequence[Tensor], truth: Tensor, tie: float) -> str | None:
    """Why an output is not a right answer, judged by float64 scores `[1, N]`; None when it is.

    The kept tokens must be distinct, in order, the least similar ones up to `tie`, and moved bit for bit.
    """
    indices = pruned.indices[0]
    k = indices.numel()
    if k and (indices.min() < 0 or indices.max() >= hidden.shape[1] or not (indices.diff() > 0).all()):
        return "its indices are not ascending positions in the row"
    ranked = truth[0].nan_to_num(nan=torch.inf)
    if not torch.isclose(ranked[indices].sort().values, ranked.sort().values[:k], rtol=0, atol=tie).all():
        return "it does not keep the least similar tokens"
    moved = [(pruned.hidden, hidden.index_select(1, indices)),
             *((out, t.index_select(2, indices)) for out, t in zip(pruned.kv, kv, strict=True))]
    if not all(torch.equal(out.view(torch.uint8), want.contiguous().view(torch.uint8)) for out, want in moved):
        return "its gathered rows differ from the input's"
    return None


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _tie(dtype: torch.dtype) -> float:
    return TIE if dtype == torch.float32 else torch.finfo(dtype).eps * 2  # peers round their scores to the dtype
