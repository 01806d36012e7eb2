"""prototype_scores: float64 similarities, hostile samples."""

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
        similarity = x @ p.T
        if metric == "cosine":
            similarity = similarity * _rnorm64(p) * _rnorm64(x)[..., None]
    return similarity


def _rnorm64(x: np.ndarray) -> np.ndarray:
    squares = (x * x).sum(-1)
    rnorm = np.where(squares < FLT_MIN, 0.0, 1 / np.sqrt(squares))
    return np.where(squares > FLT_MAX, np.nan, np.where(np.isnan(squares), np.nan, rnorm))


def assert_scores(scores: Tensor, tokens: Tensor, prototypes: Tensor, metric: str = "cosine",
                  argmax: Tensor | None = None) -> None:
    """No worse than plain float32 torch against float64; NaN where the oracle has it; an argmax that attains."""
    similarity = oracle_similarity(tokens, prototypes, metric)
    gold = similarity.max(-1) if similarity.size else similarity.sum(-1)  # NumPy's max propagates NaN
    got = scores.detach().double().cpu().numpy()
    assert got.shape == gold.shape, (got.shape, gold.shape)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(gold))
    plain = _plain_scores(tokens, prototypes, metric)
    ok = np.isfinite(gold)
    np.testing.assert_array_equal(got[~ok & ~np.isnan(gold)], gold[~ok & ~np.isnan(gold)])
    if ok.any():
        scale = max(1.0, float(np.abs(gold[ok]).max()))
        floor = 4 * np.finfo(np.float32).eps * scale * max(1.0, tokens.shape[-1] ** 0.5 / 8)
        allowed = max(float(np.abs(plain[ok] - gold[ok]).max()), floor)
        worst = float(np.abs(got[ok] - gold[ok]).max())
        assert worst <= 2 * allowed, f"score error {worst:.3g}, plain float32 torch has {allowed:.3g}"
        if argmax is not None:
            chosen = np.take_along_axis(similarity, argmax.cpu().numpy()[..., None].astype(np.int64), -1)[..., 0]
            gap = float((gold[ok] - chosen[ok]).max())
            assert gap <= 4 * allowed, f"argmax is {gap:.3g} under the maximum"


def _plain_scores(tokens: Tensor, prototypes: Tensor, metric: str) -> np.ndarray:
    x, p = tokens.detach().float().cpu(), prototypes.detach().float().cpu()
    if metric == "cosine":
        x, p = torch.nn.functional.normalize(x, dim=-1), torch.nn.functional.normalize(p, dim=-1)
    return (x @ p.T).amax(-1).double().numpy()


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
