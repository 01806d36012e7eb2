"""temporal_scores, row_statistics, subspace_residual: float64 oracles, hostile samples."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .base import Sample, clustered, hostile_tokens, padded, rand
from .score import FLT_MAX, FLT_MIN, _rnorm64

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPS = float(np.finfo(np.float32).eps)
VANISHED = 1e-18  # what is left of a sum of squares under the smallest float32


def _wide(t: Tensor) -> np.ndarray:
    return t.detach().double().cpu().numpy()


def _in_float32(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) > FLT_MAX, np.sign(x) * np.inf, x)


def _assert_near(got: Tensor, gold: np.ndarray, allowed: np.ndarray | float, what: str) -> None:
    """Equal where `gold` is not finite, else no further from it than `allowed`."""
    value = _wide(got)
    assert value.shape == gold.shape, (value.shape, gold.shape)
    ok = np.isfinite(gold)
    np.testing.assert_array_equal(value[~ok], gold[~ok], err_msg=what)
    assert np.isfinite(value[ok]).all(), f"{what} is not finite where it should be"
    excess = np.abs(value[ok] - gold[ok]) - np.broadcast_to(allowed, gold.shape)[ok]
    assert not (excess > 0).any(), f"{what} is {excess.max():.3g} further from float64 than float32 allows"


def _rounding(d: int) -> float:
    """Relative error that a float32 sum of d terms may have, in some order."""
    return 8 * EPS * max(1.0, d**0.5 / 8)


def assert_temporal(scores: Tensor, tokens: Tensor, metric: str = "cosine", first: float | None = None) -> None:
    x = _wide(tokens)
    gold = np.empty(x.shape[:-1])
    gold[:, :1] = (-np.inf if metric == "cosine" else np.inf) if first is None else first
    before, now = x[:, :-1], x[:, 1:]
    with np.errstate(all="ignore"):
        if metric == "cosine":
            gold[:, 1:] = (before * now).sum(-1) * (_rnorm64(before) * _rnorm64(now))
        elif metric == "l1":
            gold[:, 1:] = _in_float32(np.abs(now - before).sum(-1))
        else:
            gold[:, 1:] = np.sqrt(_in_float32(np.square(now - before).sum(-1)))
        allowed = _rounding(x.shape[-1]) * (1 if metric == "cosine" else np.abs(gold)) + VANISHED
    _assert_near(scores, gold, allowed, metric)


def assert_row_statistics(outputs: Sequence[Tensor], rows: Tensor) -> None:
    x = _wide(rows)
    weight = np.where(x < FLT_MIN, 0.0, x)
    with np.errstate(all="ignore"):
        l1, total = _in_float32(np.abs(x).sum(-1)), weight.sum(-1)
        l2 = np.sqrt(_in_float32(np.square(x).sum(-1)))
        p = weight / np.where(total > 0, total, 1.0)[..., None]
        entropy = np.where(np.isfinite(l1), -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1), np.nan)
        logs = np.abs(weight * np.log(np.where(weight > 0, weight, 1.0))).sum(-1) / np.where(total > 0, total, 1.0)
        scale = 1 + logs + np.abs(np.log(np.where(total > 0, total, 1.0)))
    rounding = _rounding(x.shape[-1])
    _assert_near(outputs[0], l1, rounding * l1, "l1")
    _assert_near(outputs[1], l2, rounding * l2 + VANISHED, "l2")
    _assert_near(outputs[2], entropy, rounding * scale, "entropy")


def assert_residual(residual: Tensor, tokens: Tensor, basis: Tensor) -> None:
    """Not compared where float32 cannot hold the square of the token: there it only has to be no number."""
    x, b = _wide(tokens), _wide(basis)
    with np.errstate(all="ignore"):
        gold = np.sqrt(np.square(x - x @ b.swapaxes(-1, -2) @ b).sum(-1))
        norm = np.sqrt(np.square(x).sum(-1))
    gold = np.where(np.isfinite(norm) | (b.shape[1] == 0), gold, np.nan)
    held = ~(np.isfinite(norm) & (norm**2 > FLT_MAX))
    assert not np.isfinite(_wide(residual)[~held]).any()
    scale = np.where(np.isfinite(norm), norm, 0.0) * (1 + np.sqrt(np.square(b).sum((-1, -2))[:, None]))
    allowed = _rounding(x.shape[-1] + b.shape[1]) * scale + VANISHED
    value = torch.where(torch.from_numpy(held), residual.cpu(), 0.0)
    _assert_near(value, np.where(held, gold, 0.0), allowed, "the residual")


def temporal_samples(dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        video = clustered(2 * 5 * 7, 129, dtype=dtype).view(2, 5, 7, 129)
        hostile = hostile_tokens(40, 24, dtype)
        still = rand(1, 1, 3, 70, dtype=dtype).expand(2, 4, 3, 70)
        for metric in ("cosine", "l1", "l2"):
            yield Sample(f"{tag}-{metric}-2x5x7x129", (video,), {"metric": metric})
            yield Sample(f"{tag}-{metric}-hostile", (hostile.view(1, 40, 1, 24),), {"metric": metric, "first": 0.5})
            yield Sample(f"{tag}-{metric}-still-expanded", (still,), {"metric": metric})
        yield Sample(f"{tag}-hostile-grid", (hostile.view(2, 4, 5, 24),), {"first": float("nan")})
        yield Sample(f"{tag}-odd", (rand(1, 19, 37, 33, dtype=dtype),), {})
        for b, f, n, d in ((1, 1, 1, 1), (1, 2, 1, 1), (1, 0, 3, 4), (2, 3, 0, 4), (0, 2, 2, 4), (1, 3, 2, 0)):
            yield Sample(f"{tag}-{b}x{f}x{n}x{d}", (rand(b, f, n, d, dtype=dtype),), {"metric": "l1"} if d == 1 else {})
        yield Sample(f"{tag}-strided", (rand(2, 8, 5, 90, dtype=dtype)[:, ::2, 1:, ::3],), {"metric": "l2"})
        yield Sample(f"{tag}-offset", (padded(rand(1, 3, 4, 64, dtype=dtype), 3),), {})
        yield Sample(f"{tag}-transposed", (rand(1, 20, 4, 6, dtype=dtype).permute(0, 2, 3, 1),), {})
    yield Sample("float32-wide", (clustered(3 * 2, 4500).view(1, 3, 2, 4500),), {})


def statistics_samples(dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        for shape in ((3, 5, 129), (7,), (1, 1), (0, 8), (4, 0), (2, 3, 2, 64)):
            yield Sample(f"{tag}-{'x'.join(map(str, shape))}", (rand(*shape, dtype=dtype),), {})
        yield Sample(f"{tag}-hostile", (hostile_tokens(40, 24, dtype),), {})
        edge = torch.zeros(7, 40)
        edge[1] = 1.0            # uniform: ln 40
        edge[2, 7] = 3.0         # all in one place: 0
        edge[3] = -1.0           # nothing positive
        edge[4, :2] = torch.tensor([1e4, 1e-4])
        edge[5, 3:] = 6e4
        edge[6, 0], edge[6, 1] = -torch.inf, 1.0
        yield Sample(f"{tag}-edge", (edge.to(dtype),), {})
        attention = rand(4, 77, dtype=torch.float32).mul(3).softmax(-1).to(dtype)
        yield Sample(f"{tag}-attention-expanded", (attention[:, None].expand(4, 3, 77),), {})
        yield Sample(f"{tag}-strided", (rand(4, 6, 90, dtype=dtype)[::2, 1:, ::3],), {})
        yield Sample(f"{tag}-transposed", (rand(30, 4, 6, dtype=dtype).permute(2, 1, 0),), {})
        yield Sample(f"{tag}-offset", (padded(rand(9, 64, dtype=dtype), 3),), {})
    yield Sample("float32-wide", (rand(3, 9001).abs(),), {})
    yield Sample("float32-ends", (torch.tensor([[3e38, 3e38], [1e38, 1e38], [1e-38, 1e-37], [2e-39, 2e-39],
                                               [1e-20, 1e20]]),), {})


def _basis(b: int, r: int, d: int, dtype: torch.dtype) -> Tensor:
    return torch.linalg.qr(rand(b, d, d, seed=5)).Q[:, :r].to(dtype)


def residual_samples(dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        for b, n, d, r in ((2, 37, 64, 5), (1, 50, 129, 33), (2, 3, 40, 1), (1, 6, 17, 17), (1, 9, 24, 0),
                           (1, 0, 8, 2), (1, 3, 0, 0), (1, 1, 1, 1)):
            yield Sample(f"{tag}-{b}x{n}x{d}-r{r}", (rand(b, n, d, dtype=dtype), _basis(b, r, d, dtype)), {})
        inside = rand(1, 30, 4) @ _basis(1, 4, 48, torch.float32)
        yield Sample(f"{tag}-inside", (inside.to(dtype), _basis(1, 4, 48, dtype)), {})
        for r in (0, 3):
            yield Sample(f"{tag}-hostile-r{r}", (hostile_tokens(40, 24, dtype)[None], _basis(1, r, 24, dtype)), {})
        yield Sample(f"{tag}-strided", (rand(2, 40, 66, dtype=dtype)[:, ::2, ::2],
                                        _basis(2, 33, 33, dtype).mT[:, ::3]), {})
        yield Sample(f"{tag}-expanded", (rand(1, 9, 32, dtype=dtype).expand(3, 9, 32),
                                         _basis(1, 8, 32, dtype).expand(3, 8, 32)), {})
        yield Sample(f"{tag}-offset", (padded(rand(1, 9, 32, dtype=dtype), 3), padded(_basis(1, 8, 32, dtype), 3)), {})
