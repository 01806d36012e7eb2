"""prototype_scores, prototype_topm, prototype_softmax_scores: float64 similarities, hostile samples."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .base import Sample, clustered, hostile_tokens, rand

FLT_MIN = float(np.finfo(np.float32).tiny)
FLT_MAX = float(np.finfo(np.float32).max)


def oracle_similarity(tokens: Tensor, prototypes: Tensor, metric: str = "cosine") -> np.ndarray:
    """[.., P] float64 similarities by the rules of `prototype_scores`."""
    x = tokens.detach().double().cpu().numpy()
    p = prototypes.detach().double().cpu().numpy()
    with np.errstate(all="ignore"):
        similarity = np.einsum("...gd,gpd->...gp", x, p) if p.ndim == 3 else x @ p.T
        if metric == "cosine":
            similarity = similarity * _rnorm64(p) * _rnorm64(x)[..., None]
        elif metric == "l2":
            similarity = 2 * similarity - (p * p).sum(-1) - (x * x).sum(-1)[..., None]
    return similarity


def _rnorm64(x: np.ndarray) -> np.ndarray:
    squares = (x * x).sum(-1)
    rnorm = np.where(squares < FLT_MIN, 0.0, 1 / np.sqrt(squares))
    return np.where(squares > FLT_MAX, np.nan, np.where(np.isnan(squares), np.nan, rnorm))


def _unbounded(tokens: Tensor, prototypes: Tensor) -> np.ndarray:
    """[..] tokens whose squared distances float32 cannot hold."""
    with np.errstate(all="ignore"):
        squares = [t.detach().double().cpu().square().sum(-1).numpy() for t in (tokens, prototypes)]
        return ~(squares[0] + squares[1].max(-1) <= FLT_MAX)


def _allowed_error(similarity: np.ndarray, plain: np.ndarray, tokens: Tensor, prototypes: Tensor,
                   metric: str) -> float:
    """The error of plain float32 torch against float64 `similarity`, or a floor of a few roundings."""
    ok = np.isfinite(similarity)
    scale = max(1.0, float(np.abs(similarity[ok]).max()))
    if metric == "l2":  # what the distance is a difference of
        held = ~_unbounded(tokens, prototypes)
        norms = [t.detach().double().cpu().square().sum(-1).numpy() for t in (tokens, prototypes)]
        scale = max(scale, float(norms[0][held].max()) + float(norms[1].max()))
    floor = 4 * np.finfo(np.float32).eps * scale * max(1.0, tokens.shape[-1] ** 0.5 / 8)
    return max(float(np.abs(plain[ok] - similarity[ok]).max()), floor)


def assert_scores(scores: Tensor, tokens: Tensor, prototypes: Tensor, metric: str = "cosine",
                  argmax: Tensor | None = None) -> None:
    """No worse than plain float32 torch against float64; NaN where the oracle has it; an argmax that attains.

    The lowest argmax, where all similarities are whole numbers.
    """
    similarity = oracle_similarity(tokens, prototypes, metric)
    gold = similarity.max(-1) if similarity.size else similarity.sum(-1)  # NumPy's max propagates NaN
    got = scores.detach().double().cpu().numpy()
    assert got.shape == gold.shape, (got.shape, gold.shape)
    if metric == "l2":  # -inf or NaN, by the order of the sums
        unbounded = _unbounded(tokens, prototypes)
        assert not np.isfinite(got[unbounded]).any()
        assert not (got > 0).any()
        np.testing.assert_array_equal(np.isnan(got[np.isnan(tokens.double().numpy()).any(-1)]), True)
        gold = np.where(unbounded, got, gold)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(gold))
    plain = _plain_similarity(tokens, prototypes, metric).max(-1)
    ok = np.isfinite(gold)
    np.testing.assert_array_equal(got[~ok & ~np.isnan(gold)], gold[~ok & ~np.isnan(gold)])
    if ok.any():
        allowed = _allowed_error(gold, plain, tokens, prototypes, metric)
        worst = float(np.abs(got[ok] - gold[ok]).max())
        assert worst <= 2 * allowed, f"score error {worst:.3g}, plain float32 torch has {allowed:.3g}"
        if argmax is not None:
            chosen = np.take_along_axis(similarity, argmax.cpu().numpy()[..., None].astype(np.int64), -1)[..., 0]
            gap = float((gold[ok] - chosen[ok]).max())
            assert gap <= 4 * allowed, f"argmax is {gap:.3g} under the maximum"
            if metric != "cosine" and _are_exact(similarity):
                np.testing.assert_array_equal(argmax.cpu().numpy(), similarity.argmax(-1))


def _are_exact(similarity: np.ndarray) -> bool:
    """Whether they are small whole numbers, which float32 sums to in every order."""
    return bool((similarity == np.round(similarity)).all() and np.abs(similarity).max() < 2**22)


def _plain_similarity(tokens: Tensor, prototypes: Tensor, metric: str) -> np.ndarray:
    x, p = tokens.detach().float().cpu(), prototypes.detach().float().cpu()
    if metric == "cosine":
        x, p = torch.nn.functional.normalize(x, dim=-1), torch.nn.functional.normalize(p, dim=-1)
    products = (x[..., None, :] @ p.mT)[..., 0, :] if p.dim() == 3 else x @ p.T
    if metric == "l2":
        products = 2 * products - p.square().sum(-1) - x.square().sum(-1, keepdim=True)
    return products.double().numpy()


def assert_prototype_scores(outputs: Sequence[Tensor], tokens: Tensor, prototypes: Tensor, *, metric: str = "cosine",
                            prototype_rnorm: Tensor | None = None) -> None:
    """Given norms must be those of the prototypes."""
    assert_scores(outputs[0], tokens, prototypes, metric, outputs[1])


def assert_topm(outputs: Sequence[Tensor], tokens: Tensor, prototypes: Tensor, m: int, metric: str = "cosine") -> None:
    """Distinct prototypes, best first, NaN last, with similarities that are the best of float64 within rounding.

    Exactly the best, ties by index, where all similarities are whole numbers.
    """
    scores, indices = (t.detach().cpu().numpy() for t in outputs)
    similarity = oracle_similarity(tokens, prototypes, metric)
    shape = (*similarity.shape[:-1], m)
    assert scores.shape == indices.shape == shape, (scores.shape, indices.shape, shape)
    if not scores.size:
        return
    count = similarity.shape[-1]
    assert ((indices >= 0) & (indices < count)).all()
    assert (np.diff(np.sort(indices, -1), axis=-1) > 0).all(), "a prototype came twice"
    ordered = np.lexsort((np.broadcast_to(np.arange(count), similarity.shape), -similarity, np.isnan(similarity)))
    gold = np.take_along_axis(similarity, ordered[..., :m], -1)
    chosen = np.take_along_axis(similarity, indices.astype(np.int64), -1)
    held = ~_unbounded(tokens, prototypes)[..., None] if metric == "l2" else np.ones(shape[:-1], bool)[..., None]
    held = np.broadcast_to(held, shape)
    np.testing.assert_array_equal(np.isnan(scores)[held], np.isnan(gold)[held])
    np.testing.assert_array_equal(np.isnan(chosen)[held], np.isnan(gold)[held])
    steps = np.diff(scores, axis=-1)
    assert not (steps[held[..., 1:]] > 0).any(), "scores increase"
    ok = np.isfinite(gold) & held
    if not ok.any():
        return
    plain = np.take_along_axis(_plain_similarity(tokens, prototypes, metric), ordered[..., :m], -1)
    allowed = _allowed_error(np.where(ok, gold, np.nan), plain, tokens, prototypes, metric)
    assert float(np.abs(scores[ok] - chosen[ok]).max()) <= 2 * allowed
    assert float(np.abs(gold[ok] - chosen[ok]).max()) <= 4 * allowed
    if metric != "cosine" and _are_exact(np.where(np.isnan(similarity), 0, similarity)):
        np.testing.assert_array_equal(indices, ordered[..., :m])


def assert_softmax(out: Tensor, tokens: Tensor, prototypes: Tensor, over_tokens: bool = False) -> None:
    got = out.detach().double().cpu().numpy()
    with np.errstate(all="ignore"):
        e = np.exp(oracle_similarity(tokens, prototypes))
        weights = e / e.sum(-1, keepdims=True)
        if over_tokens:
            weights = weights * (e / e.sum(-2, keepdims=True))
    gold = weights.max(-1)
    assert got.shape == gold.shape, (got.shape, gold.shape)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(gold))
    ok = ~np.isnan(gold)
    terms = max(*tokens.shape[1:], prototypes.shape[0])
    allowed = 16 * np.finfo(np.float32).eps * max(1.0, terms**0.5 / 8) * gold
    assert (np.abs(got - gold) <= allowed)[ok].all(), f"error {np.abs((got - gold) / gold)[ok].max():.3g}"


def score_samples(dtypes: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16)) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        for b, n, d, p in ((1, 1, 1, 1), (1, 63, 40, 5), (2, 37, 129, 33), (3, 100, 64, 97), (1, 0, 16, 3)):
            yield Sample(f"{tag}-{b}x{n}x{d}-P{p}", (rand(b, n, d, dtype=dtype), rand(p, d, dtype=dtype, seed=1)), {})
        yield Sample(f"{tag}-hostile", (hostile_tokens(40, 24, dtype)[None], rand(9, 24, dtype=dtype, seed=1)), {})
        yield Sample(f"{tag}-packed", (clustered(50, 32, dtype=dtype), clustered(6, 32, dtype=dtype, seed=3)), {})
        zero = rand(4, 24, dtype=dtype, seed=1)
        zero[1] = 0
        yield Sample(f"{tag}-zero-prototype", (rand(2, 20, 24, dtype=dtype), zero), {})
        yield Sample(f"{tag}-dot", (rand(1, 30, 48, dtype=dtype), rand(10, 48, dtype=dtype, seed=1)), {"metric": "dot"})
        same = rand(1, 24, dtype=dtype).expand(31, 24)
        yield Sample(f"{tag}-equal-expanded", (same[None], rand(1, 24, dtype=dtype, seed=1).expand(5, 24)), {})
        strided = rand(2, 40, 50, dtype=dtype)[:, ::2, 1:34]
        yield Sample(f"{tag}-strided", (strided, rand(7, 66, dtype=dtype)[:, ::2]), {})
        yield Sample(f"{tag}-transposed", (rand(2, 24, 30, dtype=dtype).mT, rand(24, 7, dtype=dtype).T), {})
        for metric in ("l2", "cosine"):
            groups = (clustered(2 * 9 * 3, 21, dtype=dtype).view(2, 9, 3, 21), rand(3, 6, 21, dtype=dtype, seed=1))
            yield Sample(f"{tag}-{metric}-grouped", groups, {"metric": metric})
        yield Sample(f"{tag}-l2", (clustered(50, 32, dtype=dtype), clustered(40, 32, dtype=dtype, seed=3)),
                     {"metric": "l2"})
        yield Sample(f"{tag}-l2-hostile", (hostile_tokens(40, 24, dtype)[None], rand(9, 24, dtype=dtype, seed=1)),
                     {"metric": "l2"})
        for metric in ("dot", "l2"):
            repeated = _whole(64, 7, dtype=dtype, seed=2).repeat(3, 1)
            yield Sample(f"{tag}-{metric}-ties", (_whole(90, 7, dtype=dtype, seed=1), repeated), {"metric": metric})
        same = clustered(70, 33, dtype=dtype)
        yield Sample(f"{tag}-l2-same", (same, same), {"metric": "l2"})
        images = rand(3, 11, 40, dtype=dtype)[..., 1:34].transpose(0, 1)  # a codebook for each image
        yield Sample(f"{tag}-grouped-packed-strided", (images, rand(3, 33, 5, dtype=dtype, seed=1).mT), {})


def _whole(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Small whole numbers, whose products are exact in every order."""
    return rand(*shape, dtype=torch.float32, seed=seed).round().to(dtype)


def topm_samples(dtypes: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16)) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        for b, n, d, p, m in ((1, 1, 1, 1, 1), (2, 37, 129, 33, 4), (1, 19, 40, 97, 97), (1, 0, 16, 3, 2)):
            yield Sample(f"{tag}-{b}x{n}x{d}-P{p}-m{m}",
                         (rand(b, n, d, dtype=dtype), rand(p, d, dtype=dtype, seed=1), m), {})
        for metric in ("dot", "l2"):
            ties = (_whole(30, 7, dtype=dtype, seed=1), _whole(70, 7, dtype=dtype, seed=2), 41)
            yield Sample(f"{tag}-{metric}-ties", ties, {"metric": metric})
        spoilt = rand(12, 24, dtype=dtype, seed=1)
        spoilt[3, 5], spoilt[4], spoilt[7, 0] = torch.nan, 0.0, torch.inf
        yield Sample(f"{tag}-hostile", (hostile_tokens(40, 24, dtype)[None], spoilt, 12), {})
        yield Sample(f"{tag}-hostile-m3", (hostile_tokens(40, 24, dtype)[None], spoilt, 3), {})
        yield Sample(f"{tag}-l2-grouped", (clustered(54, 21, dtype=dtype).view(2, 9, 3, 21),
                                           rand(3, 6, 21, dtype=dtype, seed=1), 2), {"metric": "l2"})
        yield Sample(f"{tag}-equal-expanded", (rand(1, 24, dtype=dtype).expand(31, 24),
                                               rand(1, 24, dtype=dtype, seed=1).expand(50, 24), 5), {})
        yield Sample(f"{tag}-strided", (rand(2, 40, 50, dtype=dtype)[:, ::2, 1:34],
                                        rand(7, 66, dtype=dtype)[:, ::2], 3), {})


def softmax_samples(dtypes: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16)) -> Iterator[Sample]:
    for dtype in dtypes:
        for over in (False, True):
            tag, extra = f"{str(dtype).removeprefix('torch.')}{'-double' if over else ''}", {"over_tokens": over}
            for b, n, d, p in ((1, 1, 1, 1), (2, 37, 129, 33), (1, 131, 40, 97), (1, 0, 16, 3), (0, 3, 16, 3)):
                yield Sample(f"{tag}-{b}x{n}x{d}-P{p}",
                             (rand(b, n, d, dtype=dtype), rand(p, d, dtype=dtype, seed=1)), extra)
            hostile = hostile_tokens(40, 24, dtype)
            rows = torch.stack([hostile[:10], hostile[2:12].nan_to_num(3, 4, 5), hostile[12:22]])
            yield Sample(f"{tag}-hostile", (rows, rand(9, 24, dtype=dtype, seed=1)), extra)
            spoilt = rand(4, 24, dtype=dtype, seed=1)
            spoilt[1] = 0
            spoilt[2, 3] = torch.nan if over else 1.0
            yield Sample(f"{tag}-spoilt-prototypes", (rand(2, 20, 24, dtype=dtype), spoilt), extra)
            same = rand(1, 24, dtype=dtype).expand(2, 31, 24)
            yield Sample(f"{tag}-equal-expanded", (same, rand(1, 24, dtype=dtype, seed=1).expand(5, 24)), extra)
            yield Sample(f"{tag}-strided", (rand(2, 40, 50, dtype=dtype)[:, ::2, 1:34],
                                            rand(7, 66, dtype=dtype)[:, ::2]), extra)
