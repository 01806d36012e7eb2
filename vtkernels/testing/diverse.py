"""select_diverse: a replay of the picks on float64 similarities, exact picks where arithmetic is exact, samples."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .base import Sample, clustered, hostile_tokens, padded, rand
from .score import _rnorm64

EPS = float(np.finfo(np.float32).eps)


def _similarity64(features: Tensor) -> np.ndarray:
    x = features.detach().double().cpu().numpy()
    with np.errstate(all="ignore"):
        rnorm = _rnorm64(x)
        return (x @ x.T) * (rnorm[:, None] * rnorm)


class _Distances:
    """Values of max_min and max_sum, and what float32 may be off by."""

    def __init__(self, similarity: np.ndarray, objective: str, error: float) -> None:
        self.is_sum, self.error = objective == "max_sum", error
        self.without_norm = np.isnan(similarity.diagonal())
        distance = np.where(np.isnan(similarity), 0.0 if self.is_sum else np.inf, 1 - similarity)
        np.fill_diagonal(distance, 0.0 if self.is_sum else np.inf)
        self.distance = distance

    def after(self, order: list[int]) -> tuple[np.ndarray, np.ndarray]:
        rows = self.distance[order] if order else self.distance.T
        value = rows.sum(0) if self.is_sum else rows.min(0, initial=np.inf)
        allowed = np.full(value.shape, self.error * (max(1, len(rows)) if self.is_sum else 1))
        return np.where(self.without_norm, np.nan, value), allowed


class _Gains:
    """Values of dpp. A rounding error in L grows with the coefficients by which picked tokens explain the others."""

    def __init__(self, similarity: np.ndarray, relevance: Tensor | None, error: float) -> None:
        r = np.ones(len(similarity)) if relevance is None else relevance.detach().double().cpu().numpy()
        with np.errstate(all="ignore"):
            self.kernel = r[:, None] * similarity * r
        usable = np.isfinite(self.kernel.diagonal())
        self.error = error * max(1e-30, float(self.kernel.diagonal()[usable].max(initial=0.0)))

    def after(self, order: list[int]) -> tuple[np.ndarray, np.ndarray]:
        gain = self.kernel.diagonal().copy()
        if not order:
            return gain, np.full(len(gain), self.error)
        cross = self.kernel[order]
        usable = np.isfinite(cross).all(0) & np.isfinite(gain)
        explained = np.linalg.lstsq(cross[:, order], cross[:, usable], rcond=None)[0]
        gain[usable] -= (explained * cross[:, usable]).sum(0)
        gain[~usable] = np.nan
        allowed = np.full(len(gain), self.error)
        allowed[usable] *= (1 + np.abs(explained).sum(0)) ** 2
        return gain, allowed


def _values(features: Tensor, objective: str, relevance: Tensor | None) -> _Distances | _Gains:
    similarity = _similarity64(features)
    error = 16 * EPS * max(1.0, features.shape[-1] ** 0.5 / 8)
    return _Gains(similarity, relevance, error) if objective == "dpp" else _Distances(similarity, objective, error)


def _seeds(seeds: Tensor | None, b: int, n: int) -> list[int]:
    return [] if seeds is None else list(dict.fromkeys(s for s in seeds[b].tolist() if 0 <= s < n))


def oracle_diverse(features: Tensor, k: int, *, objective: str = "max_min", relevance: Tensor | None = None,
                   seeds: Tensor | None = None) -> list[list[int]]:
    """Picks in order. Exact where float32 would be, such as with entries of +-1 and D a power of 4."""
    rows = []
    for b, row in enumerate(features):
        values = _values(row, objective, None if relevance is None else relevance[b])
        order = _seeds(seeds, b, len(row))
        while len(order) < k:
            value, _ = values.after(order)
            value = np.where(np.isnan(value), -np.inf, value)
            value = np.round(value, 9)  # of the least squares of dpp
            left = [i for i in range(len(row)) if i not in order]
            if objective == "dpp" and not max(value[i] for i in left) > 0:
                order += left[:k - len(order)]
            else:
                order.append(min(left, key=lambda i: (-value[i], i)))
        rows.append(order)
    return rows


def assert_diverse(outputs: Sequence[Tensor], features: Tensor, k: int, *, objective: str = "max_min",
                   relevance: Tensor | None = None, seeds: Tensor | None = None) -> None:
    """Distinct picks, seeds first, each of which attains the largest float64 value within the rounding of float32."""
    order, indices = (t.cpu().long() for t in outputs)
    n = features.shape[1]
    assert order.shape == indices.shape == (features.shape[0], k)
    for b, row in enumerate(features):
        picks = order[b].tolist()
        assert indices[b].tolist() == sorted(picks)
        assert len(set(picks)) == k, "a token was picked twice"
        assert all(0 <= i < n for i in picks)
        given = _seeds(seeds, b, n)
        assert picks[:len(given)] == given, "the seeds do not come first"
        values = _values(row, objective, None if relevance is None else relevance[b])
        for step in range(len(given), k):
            value, allowed = values.after(picks[:step])
            left = np.setdiff1d(np.arange(n), picks[:step])
            usable = left[~np.isnan(value[left])]
            pick = picks[step]
            if objective == "dpp" and not (value[usable] > allowed[usable]).any():
                if not (value[usable] >= -allowed[usable]).any():
                    assert picks[step:] == left[:k - step].tolist(), "without gains the rest is in ascending order"
                break  # rounding decides about the rest
            if usable.size == 0:
                assert pick == left[0], "tokens without a norm come in ascending order"
                continue
            assert pick in usable, "a token without a norm came before others"
            least = (value[usable] - allowed[usable]).max()
            assert value[pick] + allowed[pick] >= least, f"pick {step} has {value[pick]:.9g}, another one {least:.9g}"


def signs(*shape: int, seed: int = 0) -> Tensor:
    """Entries of +-1: with D a power of 4, all arithmetic on them is exact."""
    return torch.where(rand(*shape, seed=seed) < 0, -1.0, 1.0)


def hadamard(n: int) -> Tensor:
    """[n, n] orthogonal rows of +-1, n a power of two."""
    rows = torch.ones(1, 1)
    while len(rows) < n:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    return rows


def diverse_samples() -> Iterator[Sample]:
    nan = float("nan")
    edge = hostile_tokens(40, 24)
    for objective in ("max_min", "max_sum", "dpp"):
        only = {"objective": objective}
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            tag = f"{objective}-{str(dtype).removeprefix('torch.')}"
            yield Sample(f"{tag}-2x40x24-k9", (clustered(80, 24, dtype=dtype).view(2, 40, 24), 9), only)
        yield Sample(f"{objective}-hostile", (edge[None], 40), only)
        yield Sample(f"{objective}-hostile-bfloat16", (edge[None].bfloat16(), 30), only)
        yield Sample(f"{objective}-prime", (rand(1, 131, 7), 11), only)
        tie = "signs" if objective == "dpp" else "exact-signs"
        yield Sample(f"{objective}-{tie}", (signs(2, 50, 16), 20), only)
        yield Sample(f"{objective}-exact-equal", (torch.ones(1, 1, 4).expand(2, 20, 4), 6), only)
        orthogonal = torch.cat([hadamard(16)[:9], torch.zeros(1, 16)])[None]
        yield Sample(f"{objective}-exact-orthogonal", (orthogonal, 10), only)
        yield Sample(f"{objective}-exact-zeros", (torch.zeros(1, 9, 5), 9), only)
        yield Sample(f"{objective}-exact-all-nan", (torch.full((1, 7, 3), nan), 7), only)
        # No gain is left of the zeros and none was ever of NaN: dpp goes on with the lowest index, the others do not.
        yield Sample(f"{objective}-exact-nan-before-zeros", (torch.tensor([[[nan, 0], [0, 2], [0, 0]]]), 2), only)
        yield Sample(f"{objective}-exact-one", (rand(3, 1, 4), 1), only)
        yield Sample(f"{objective}-no-rows", (rand(0, 5, 4), 2), only)
        yield Sample(f"{objective}-k0", (rand(2, 5, 4), 0), only)
        yield Sample(f"{objective}-no-tokens", (rand(2, 0, 4), 0), only)
        yield Sample(f"{objective}-no-features", (rand(1, 5, 0), 3), only)
        yield Sample(f"{objective}-strided", (rand(4, 60, 50)[::2, ::2, 1:34:2], 8), only)
        yield Sample(f"{objective}-transposed-offset", (padded(rand(2, 17, 30), 3).mT, 8), only)
    for objective in ("max_min", "max_sum"):
        seeds = torch.tensor([[3, 0], [17, 39]])
        x = clustered(80, 24).view(2, 40, 24)
        yield Sample(f"{objective}-seeds", (x, 9), {"objective": objective, "seeds": seeds})
        bad = torch.tensor([[5, 5, -1, 7], [40, 2**31 - 1, 39, -2**31]], dtype=torch.int32)
        yield Sample(f"{objective}-bad-seeds", (x, 9), {"objective": objective, "seeds": bad})
        only_bad = torch.tensor([[-1], [40]]).repeat(1, 2)[:, ::2]
        yield Sample(f"{objective}-bad-seeds-only", (x, 3), {"objective": objective, "seeds": only_bad})
        nans = {"objective": objective, "seeds": torch.tensor([[0, 1, 4]])}
        yield Sample(f"{objective}-seeds-nan", (edge[None], 40), nans)
        exact = {"objective": objective, "seeds": torch.arange(36).view(1, 36).flip(1)}
        yield Sample(f"{objective}-exact-seeds", (signs(1, 50, 16, seed=3), 40), exact)
    yield Sample("max_min-exact-blocks", (signs(1, 300, 64), 70), {})
    rows = hadamard(16)[torch.arange(40) % 13][None]
    powers = torch.exp2(torch.arange(40) * 7 % 5 - 2.0)[None]
    yield Sample("dpp-exact-repeated", (rows, 20), {"objective": "dpp"})
    yield Sample("dpp-exact-relevance", (rows, 20), {"objective": "dpp", "relevance": powers})
    hostile = rand(2, 80)[:, ::2] * torch.tensor([1.0, 0.0, -0.0, 1e-20]).repeat(10)
    hostile[:, 5], hostile[:, 9] = nan, 50.0
    x = clustered(80, 24).view(2, 40, 24)
    yield Sample("dpp-relevance", (x, 9), {"objective": "dpp", "relevance": rand(2, 40).abs() + 0.5})
    yield Sample("dpp-relevance-hostile", (x, 40), {"objective": "dpp", "relevance": hostile})
