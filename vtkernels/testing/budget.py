"""select_threshold, select_top_p, allocate_budget: comparisons and exact fractions, hostile samples."""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from .base import Sample, rand
from .select import EDGE, INF, NAN, best_first

Ragged = tuple[list[list[int]], list[int], list[int]]


def _ragged(rows: list[list[int]], n: int) -> Ragged:
    counts = [len(row) for row in rows]
    return ([sorted(row) + [-1] * (n - len(row)) for row in rows], counts,
            [sum(counts[:i]) for i in range(len(counts) + 1)])


def oracle_threshold(scores: Tensor, threshold: float, largest: bool = True, min_keep: int = 0,
                     thresholds: Tensor | None = None) -> Ragged:
    """Indices, counts and cu_seqlens."""
    each = torch.full((scores.shape[0],), threshold, dtype=torch.float64).float()  # to infinity, where float32 ends
    limits = each if thresholds is None else thresholds
    rows = []
    for row, limit in zip(scores, limits.tolist(), strict=True):
        passed = [i for i, value in enumerate(row.tolist()) if (value > limit if largest else value < limit)]
        rows.append(passed if len(passed) >= min_keep else best_first(row.numpy(), largest)[:min_keep])
    return _ragged(rows, scores.shape[1])


def exact_weights(row: list[float]) -> list[int]:
    """The integers that the weights count, from fractions."""
    if INF in row:
        return [int(w == INF) for w in row]
    above = [w if w > 0 else 0.0 for w in row]
    exponent = max(math.frexp(max(above, default=0.0))[1] - 1, -126)
    return [math.floor(Fraction(w) * Fraction(2) ** (30 - exponent)) for w in above]


def oracle_top_p(scores: Tensor, p: float, min_keep: int = 1) -> Ragged:
    rows = []
    for row in scores:
        weights = exact_weights(row.tolist())
        need = math.ceil(Fraction(sum(weights) * max(1, math.floor(Fraction(p) * 2**31)), 2**31))
        ranked = best_first(row.numpy(), True)
        held = count = 0
        while held < need:
            held += weights[ranked[count]]
            count += 1
        rows.append(ranked[:max(count, min_keep)])
    return _ragged(rows, scores.shape[1])


def _shares(weights: dict[int, int], total: int) -> dict[int, int]:
    """Largest remainder: the whole parts, then one each by the part behind the point, lower positions first."""
    whole = sum(weights.values())
    exact = {i: Fraction(w * total, whole) if whole else Fraction(total, len(weights)) for i, w in weights.items()}
    parts = {i: math.floor(x) for i, x in exact.items()}
    ranked = sorted(exact, key=lambda i: (parts[i] - exact[i], i))
    for i in ranked[:total - sum(parts.values())]:
        parts[i] += 1
    return parts


def oracle_budget(weights: Tensor, total: int, minimum: int = 0, capacity: Tensor | None = None) -> list[list[int]]:
    out = []
    for b, row in enumerate(weights.tolist()):
        most = [2**31] * len(row) if capacity is None else [max(0, c) for c in capacity[b].tolist()]
        parts = [min(minimum, m) for m in most]
        rest = min(total, sum(most)) - sum(parts)
        left = dict(enumerate(exact_weights(row)))
        while left:
            shares = _shares(left, rest)
            over = [i for i, share in shares.items() if parts[i] + share > most[i]]
            if not over:
                parts = [part + shares.get(i, 0) for i, part in enumerate(parts)]
                break
            for i in over:
                rest -= most[i] - parts[i]
                parts[i] = most[i]
                del left[i]
        out.append(parts)
    return out


def threshold_samples() -> Iterator[Sample]:
    ties = (rand(4, 61) * 2).round()
    for largest in (True, False):
        tag = "largest" if largest else "smallest"
        for limit in (0.0, -0.0, 1.0, INF, -INF, 1e300, 1e-45):
            yield Sample(f"edge-{tag}-{limit}", (EDGE, limit), {"largest": largest})
        yield Sample(f"min-keep-{tag}", (ties, 1.5 if largest else -1.5), {"largest": largest, "min_keep": 20})
        yield Sample(f"each-{tag}", (ties, 0.0), {
            "largest": largest, "min_keep": 2, "thresholds": torch.tensor([NAN, 0.5, INF, -0.0])})
    yield Sample("rounded", (torch.tensor([[0.1, 0.2, 0.3]]), 0.1), {})
    yield Sample("one-too-few", (torch.tensor([[0.1, 0.4, 0.3, 0.2, 0.4]]), 0.3), {"min_keep": 3})
    yield Sample("all-nan", (torch.full((2, 9), NAN), -INF), {"min_keep": 3})
    yield Sample("keep-all", (ties, INF), {"min_keep": 61})
    yield Sample("no-rows", (rand(0, 5), 0.0), {})
    yield Sample("no-tokens", (rand(2, 0), 0.0), {})
    yield Sample("strided", (rand(8, 90)[::2, ::3], 0.1), {"thresholds": rand(8)[::2], "min_keep": 1})
    yield Sample("expanded", (rand(1, 33).expand(4, 33), 0.3), {})
    yield Sample("long", (rand(2, 5003), 0.5), {"min_keep": 1700})
    yield Sample("many-rows", (rand(40, 3), 0.5), {})


def top_p_samples() -> Iterator[Sample]:
    weights = rand(3, 77).softmax(-1)
    for p in (1e-12, 0.1, 0.7, 0.9, 1 - 1e-9, 1.0):
        yield Sample(f"softmax-{p}", (weights, p), {})
    tenths = torch.full((2, 10), 0.1)
    for p in (0.1, 0.3, 0.7, 0.71):
        yield Sample(f"equal-{p}", (tenths, p), {"min_keep": 0})
    yield Sample("edge", (EDGE, 0.5), {})
    yield Sample("one-infinity-more", (torch.tensor([[INF, 1.0, INF, NAN, INF]]), 0.5), {})
    yield Sample("min-keep", (weights, 0.2), {"min_keep": 40})
    yield Sample("zeros", (torch.tensor([[0.0, -0.0, NAN, -3.0, 0.0]]).expand(2, 5), 0.9), {"min_keep": 3})
    yield Sample("zeros-keep-none", (torch.zeros(2, 5), 0.9), {"min_keep": 0})
    yield Sample("tiny", (torch.tensor([[1e-45, 3e-45, 1e-40, 1e-38]]), 0.999), {})
    yield Sample("huge", (torch.tensor([[3.4e38, 3e38, 1e38, 1e7, 1.0]]), 1.0), {})
    yield Sample("wide", (torch.logspace(-20, 20, 300)[None], 1.0), {})
    yield Sample("no-rows", (rand(0, 5), 0.5), {})
    yield Sample("no-tokens", (rand(2, 0), 0.5), {})
    yield Sample("strided", (weights.repeat_interleave(2, 0)[::2, ::3], 0.6), {})
    yield Sample("long", (rand(1, 5003).mul(3).softmax(-1), 0.95), {})
    yield Sample("long-ties", ((rand(1, 4999) * 3).round().abs(), 0.5), {})


def budget_samples() -> Iterator[Sample]:
    weights = rand(4, 13).abs()
    for total in (0, 1, 100, 2**31 - 1):
        yield Sample(f"total-{total}", (weights, total), {})
    yield Sample("minimum", (weights, 100), {"minimum": 5})
    yield Sample("all-minimum", (weights, 65), {"minimum": 5})
    yield Sample("equal", (torch.ones(1, 7), 24), {})
    yield Sample("nothing-weighs", (torch.tensor([[0.0, -1.0, NAN, -0.0]]), 11), {"minimum": 1})
    yield Sample("infinities", (torch.tensor([[INF, 1.0, INF, -INF, INF]]), 10), {})
    yield Sample("wide", (torch.tensor([[3.4e38, 1e38, 1.0, 1e-45], [1e-45, 3e-45, 1e-44, 1e-38]]), 2**31 - 1), {})
    capacity = torch.tensor([[9, 0, 30, 2, 8, 8, 8, 1, 40, 8, 3, 7, 6]], dtype=torch.int32)
    for total in (10, 100, 129, 130, 2000):
        yield Sample(f"capacity-{total}", (weights, total), {"capacity": capacity.expand(4, 13), "minimum": total // 20
                                                             if total < 200 else 9})
    yield Sample("negative-capacity", (weights, 20), {"capacity": (capacity - 5).expand(4, 13)})
    yield Sample("full-but-weightless", (torch.tensor([[5.0, 0.0, 0.0, 1.0]]), 12), {
        "capacity": torch.tensor([[3, 9, 9, 2]], dtype=torch.int32)})
    yield Sample("one-after-another", (2.0 ** torch.arange(20)[None], 19), {
        "capacity": torch.ones(1, 20, dtype=torch.int32)})
    yield Sample("no-rows", (rand(0, 5), 5), {})
    yield Sample("no-segments", (rand(2, 0), 0), {})
    yield Sample("strided", (rand(8, 39)[::2, ::3], 77), {
        "capacity": torch.arange(8 * 26).view(8, 26)[::2, ::2].int()})
    many = rand(1, 700).abs()
    yield Sample("many", (many, 5000), {"minimum": 3, "capacity": (many * 9).int() + 2})


def _assert_ragged(outputs: tuple[Tensor, Tensor, Tensor], want: Ragged) -> None:
    for got, expected in zip(outputs, want, strict=True):
        assert got.tolist() == expected


def assert_threshold(outputs: tuple[Tensor, Tensor, Tensor], *args: Any, **kwargs: Any) -> None:
    _assert_ragged(outputs, oracle_threshold(*args, **kwargs))


def assert_top_p(outputs: tuple[Tensor, Tensor, Tensor], *args: Any, **kwargs: Any) -> None:
    _assert_ragged(outputs, oracle_top_p(*args, **kwargs))


def assert_budget(out: Tensor, *args: Any, **kwargs: Any) -> None:
    assert out.tolist() == oracle_budget(*args, **kwargs)
