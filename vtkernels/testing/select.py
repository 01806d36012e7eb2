"""select_topk, select_topk_varlen, select_quota: positions by sorting (class, value, position), hostile samples."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Sample, rand

NAN, INF = float("nan"), float("inf")
EDGE = torch.tensor([[0.0, -0.0, NAN, INF, -INF, 1.0, 1.0, -NAN, 1e-45, -1e-45, 3.4e38, -3.4e38, 0.5]])


def best_first(scores: np.ndarray, largest: bool, protected: np.ndarray | None = None,
               excluded: np.ndarray | None = None) -> list[int]:
    """Positions of one row that may be chosen: protected first, better first, NaN last, then the lower position."""
    def rank(i: int) -> tuple:
        value = float(scores[i])
        nan = np.isnan(value)
        return (protected is None or not protected[i], nan, 0.0 if nan else -value if largest else value, i)

    return sorted((i for i in range(len(scores)) if excluded is None or not excluded[i]), key=rank)


def _rows(t: Tensor | None, rows: int) -> list:
    return [None] * rows if t is None else list(t.detach().cpu().numpy())


def _padded(chosen: list[int], k: int) -> list[int]:
    return chosen + [-1] * (k - len(chosen))


def oracle_topk(scores: Tensor, k: int, largest: bool = True, ks: Tensor | None = None,
                protected: Tensor | None = None, excluded: Tensor | None = None,
                order: str = "index") -> list[list[int]]:
    """Exact positions per row, ascending or best first, -1 after the last one."""
    counts = [k] * scores.shape[0] if ks is None else [min(max(c, 0), k) for c in ks.tolist()]
    rows = []
    for row, count, first, never in zip(_rows(scores, 0), counts, _rows(protected, scores.shape[0]),
                                        _rows(excluded, scores.shape[0]), strict=True):
        chosen = best_first(row, largest, first, never)[:count]
        rows.append(_padded(sorted(chosen) if order == "index" else chosen, k))
    return rows


def clamped_bounds(given: list[int], total: int) -> list[int]:
    return [max(min(max(value, 0), total) for value in [0, *given[:i + 1]]) for i in range(len(given))]


def oracle_topk_varlen(scores: Tensor, cu_seqlens: Tensor, k: Tensor, total_out: int, largest: bool = True,
                       protected: Tensor | None = None, excluded: Tensor | None = None,
                       order: str = "index") -> tuple[list[int], list[int], int]:
    """Indices, cu_seqlens and status bits."""
    given = cu_seqlens.tolist()
    bounds = clamped_bounds(given, len(scores))
    status = 4 * (bounds != given or given[0] != 0)
    indices: list[int] = []
    ends = [0]
    for begin, end, count in zip(bounds, bounds[1:], k.tolist(), strict=False):
        status |= 2 * (not 0 <= count <= end - begin)
        first, never = (None if m is None else m[None, begin:end] for m in (protected, excluded))
        (chosen,) = oracle_topk(scores[None, begin:end], min(max(count, 0), end - begin), largest, None, first, never,
                                order)
        indices += [begin + i for i in chosen if i >= 0]
        ends.append(len(indices))
    status |= 8 * (len(indices) > total_out)
    return _padded(indices[:total_out], total_out), [min(end, total_out) for end in ends], status


def oracle_quota(scores: Tensor, cu_segments: Tensor, k: int, quota: int, largest: bool = True,
                 protected: Tensor | None = None, excluded: Tensor | None = None,
                 order: str = "index") -> tuple[list[list[int]], int]:
    """Positions and status bits."""
    given = cu_segments.tolist()
    bounds = clamped_bounds(given, scores.shape[1])
    rows = []
    for row, first, never in zip(_rows(scores, 0), _rows(protected, scores.shape[0]), _rows(excluded, scores.shape[0]),
                                 strict=True):
        ranked = best_first(row, largest, first, never)
        chosen: set[int] = set()
        for begin, end in pairwise(bounds):
            chosen |= set([i for i in ranked if begin <= i < end][:quota])
        chosen |= set([i for i in ranked if i not in chosen][:k - len(chosen)])
        rows.append(_padded(sorted(chosen) if order == "index" else [i for i in ranked if i in chosen], k))
    return rows, 4 * (bounds != given)


def topk_samples() -> Iterator[Sample]:
    for largest in (True, False):
        tag = "largest" if largest else "smallest"
        for k in range(EDGE.shape[1] + 1):
            yield Sample(f"edge-{tag}-k{k}", (EDGE, k), {"largest": largest})
        ties = (rand(3, 257) * 2).round()
        for k in (0, 1, 100, 256, 257):
            yield Sample(f"ties-{tag}-k{k}", (ties, k), {"largest": largest})
        for n, k in ((0, 0), (1, 1), (1, 0), (64, 13), (1000, 250), (4099, 1024), (70001, 17500)):
            yield Sample(f"random-{tag}-n{n}-k{k}", (rand(2 if n < 5000 else 1, n), k), {"largest": largest})
        yield Sample(f"equal-{tag}", (torch.full((2, 300), 0.25), 77), {"largest": largest})
        yield Sample(f"all-nan-{tag}", (torch.full((1, 40), NAN), 7), {"largest": largest})
        yield Sample(f"cosines-{tag}", (0.9 + 0.01 * rand(1, 2880), 288), {"largest": largest})
        yield Sample(f"strided-{tag}", (rand(6, 90)[::2, ::3], 11), {"largest": largest})
        yield Sample(f"expanded-{tag}", (rand(1, 33).expand(4, 33), 5), {"largest": largest})
    yield Sample("no-rows", (rand(0, 5), 2), {})
    yield from _masked_samples()


def _masks(*shape: int, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Protected and excluded tokens, some of them both."""
    drawn = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    return drawn < 0.3, (drawn > 0.2) & (drawn < 0.5)


def _masked_samples() -> Iterator[Sample]:
    ties = (rand(3, 41) * 2).round()
    protected, excluded = _masks(3, 41)
    ks = torch.tensor([-3, 9, 99], dtype=torch.int32)
    for order in ("index", "score"):
        yield Sample(f"counts-{order}", (ties, 20), {"ks": ks, "order": order})
        yield Sample(f"masks-{order}", (ties, 20), {"protected": protected, "excluded": excluded, "order": order})
        yield Sample(f"too-few-{order}", (ties, 40), {"excluded": excluded, "order": order, "largest": False})
        yield Sample(f"edge-{order}", (EDGE, 13), {"order": order})
    yield Sample("all-options", (ties, 30), {"ks": ks, "protected": protected, "excluded": excluded, "order": "score",
                                             "largest": False})
    yield Sample("fewer-than-protected", (ties, 4), {"protected": protected})
    yield Sample("all-protected", (ties, 7), {"protected": torch.ones(3, 41, dtype=torch.bool)})
    yield Sample("all-excluded", (ties, 7), {"excluded": torch.ones(1, 1, dtype=torch.bool).expand(3, 41)})
    wide = _masks(6, 123)
    yield Sample("strided-masks", (rand(6, 123)[::2, ::3], 11), {
        "protected": wide[0][::2, 1::3], "excluded": wide[1][1::2, ::3], "order": "score",
        "ks": torch.arange(6, dtype=torch.int32)[::2] * 3})
    long = _masks(1, 5003)
    yield Sample("long-masks", (rand(1, 5003), 900), {"protected": long[0] & long[1].roll(7), "excluded": long[1]})


def _int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def topk_varlen_samples() -> Iterator[Sample]:
    scores = (rand(100) * 4).round()
    cu, k = _int32(0, 30, 30, 37, 100), _int32(10, 0, 7, 21)
    protected, excluded = _masks(100)
    yield Sample("segments", (scores, cu, k, 38), {})
    yield Sample("smallest", (scores, cu, k, 45), {"largest": False})
    yield Sample("by-score", (scores, cu, k, 38), {"order": "score"})
    yield Sample("masks", (scores, cu, _int32(30, 0, 7, 50), 70), {"protected": protected, "excluded": excluded})
    yield Sample("masks-by-score", (scores, cu, _int32(30, 0, 7, 50), 90), {
        "protected": protected, "excluded": excluded, "order": "score"})
    yield Sample("truncated", (scores, cu, k, 12), {})
    yield Sample("truncated-by-score", (scores, cu, k, 12), {"order": "score", "protected": protected})
    yield Sample("hostile-metadata", (scores, _int32(-3, 40, 20, 300, 90), _int32(-1, 9, 99, 2), 80), {})
    yield Sample("late-start", (scores, _int32(5, 40), _int32(3), 3), {"order": "score"})
    yield Sample("decreasing", (scores, _int32(0, 30, 20, 100), _int32(3, 0, 8), 20), {})
    yield Sample("no-segments", (scores, _int32(7), _int32(), 5), {})
    yield Sample("no-tokens", (scores[:0], _int32(0, 0), _int32(0), 0), {})
    strided = torch.stack([cu, cu], 1)[:, 1], torch.stack([k, k], 1)[:, 1]
    yield Sample("strided", (rand(200)[::2], *strided, 40), {
        "protected": _masks(200)[0][::2], "excluded": _masks(200)[1][1::2]})
    lengths = torch.arange(40) % 5
    many = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    yield Sample("many", (rand(int(many[-1])), many, (lengths // 2).int(), 60), {})
    yield Sample("long", (rand(6001), _int32(0, 900, 6001), _int32(800, 1200), 2000), {})


def quota_samples() -> Iterator[Sample]:
    scores = (rand(3, 60) * 4).round()
    frames = _int32(0, 15, 30, 45, 60)
    protected, excluded = _masks(3, 60)
    masks = {"protected": protected, "excluded": excluded}
    yield Sample("frames", (scores, frames, 20, 3), {})
    yield Sample("smallest", (scores, frames, 20, 5), {"largest": False})
    yield Sample("no-quota", (scores, frames, 20, 0), {})
    yield Sample("only-quota", (scores, frames, 20, 5), {"order": "score"})
    yield Sample("masks", (scores, frames, 24, 4), masks)
    yield Sample("masks-by-score", (scores, frames, 50, 4), {**masks, "order": "score"})
    yield Sample("short-and-outside", (scores, _int32(4, 6, 6, 40), 30, 10), {})
    high = ((torch.arange(60) >= 20) & (torch.arange(60) < 30)).float().expand(2, 60)
    yield Sample("decreasing", (high, _int32(-2, 30, 20, 99, 40), 8, 2), {})
    yield Sample("no-segments", (scores, _int32(7), 9, 2), {})
    yield Sample("nothing", (scores, frames, 0, 0), {})
    yield Sample("no-rows", (scores[:0], frames, 8, 2), {})
    yield Sample("edge", (EDGE, _int32(0, 5, 13), 8, 4), {"order": "score"})
    yield Sample("all-excluded", (scores, frames, 8, 2), {"excluded": torch.ones(3, 60, dtype=torch.bool)})
    wide = _masks(6, 120)
    yield Sample("strided", (rand(6, 120)[::2, ::2], torch.stack([frames, frames], 1)[:, 1], 20, 3), {
        "protected": wide[0][::2, 1::2], "excluded": wide[1][1::2, ::2]})
    yield Sample("many-segments", (rand(1, 120), torch.arange(0, 121, 3).int(), 60, 1), {})
    yield Sample("long", (rand(1, 5003), _int32(0, 100, 5003), 1000, 300), {})


def assert_topk(out: Tensor, *args: Any, **kwargs: Any) -> None:
    assert out.tolist() == oracle_topk(*args, **kwargs)


def assert_topk_varlen(outputs: tuple[Tensor, Tensor], *args: Any, **kwargs: Any) -> None:
    indices, cu_seqlens, _ = oracle_topk_varlen(*args, **kwargs)
    assert outputs[0].tolist() == indices
    assert outputs[1].tolist() == cu_seqlens


def assert_quota(out: Tensor, *args: Any, **kwargs: Any) -> None:
    assert out.tolist() == oracle_quota(*args, **kwargs)[0]
