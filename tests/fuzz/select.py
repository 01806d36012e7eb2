"""Calls of the ops that select."""

from itertools import pairwise

import torch

from vtkernels.testing import Sample

from .draws import Draws
from .tensors import FLOATS, bounds, floats, index, ints, masks, spoil


def _order(d: Draws) -> dict:
    return {"largest": not d.chance(40), "order": d.pick(("index", "score"))}


def select_topk(d: Draws) -> Sample:
    batch, n = d.size(4, 0), d.size(90, 0)
    options = {**_order(d), **masks(d, batch, n)}
    k = d.between(0, n)
    if d.chance(25):
        options["ks"] = ints(d, spoil(d, [d.between(0, n) for _ in range(batch)]))
    return Sample("", (floats(d, batch, n), k), options)


def select_topk_varlen(d: Draws) -> Sample:
    total, segments = d.size(90, 0), d.size(6, 0)
    cu = bounds(d, total, segments)
    k = spoil(d, [d.between(0, max(0, min(b - a, total))) if b > a else 0
                  for a, b in pairwise(cu)])
    kept = min(total, sum(max(0, v) for v in k))
    out = d.pick((kept, total, d.between(0, total)))
    return Sample("", (floats(d, total), ints(d, cu), ints(d, k), out), {**_order(d), **masks(d, total)})


def select_quota(d: Draws) -> Sample:
    batch, n, segments = d.size(3, 0), d.size(80, 0), d.size(6, 0)
    k = d.between(0, n)
    quota = d.between(0, k // segments if segments else k)
    return Sample("", (floats(d, batch, n), ints(d, bounds(d, n, segments)), k, quota),
                  {**_order(d), **masks(d, batch, n)})


def select_threshold(d: Draws) -> Sample:
    batch, n = d.size(5, 0), d.size(80, 0)
    scores = floats(d, batch, n)
    limit = d.pick((0.0, 0.5, -1.0, float("inf"), -float("inf"), 1e300, 1e-45))
    if scores.numel() and d.chance(40):
        own = float(scores.reshape(-1)[d.below(scores.numel())])
        limit = own if own == own else limit
    options = {"largest": not d.chance(40), "min_keep": d.pick((0, d.between(0, n)))}
    if d.chance(30):
        options["thresholds"] = floats(d, batch)
    return Sample("", (scores, limit), options)


def select_top_p(d: Draws) -> Sample:
    batch, n = d.size(4, 0), d.size(60, 0)
    scores = floats(d, batch, n)
    if d.chance(50):
        scores = scores.abs()
    p = d.pick((0.5, 1.0, 0.9, 1e-12, 1 - 1e-9, d.between(1, 999) / 1000))
    return Sample("", (scores, p), {"min_keep": d.pick((1, 0, d.between(0, n))) if n else 0})


def allocate_budget(d: Draws) -> Sample:
    batch, segments = d.size(3, 0), d.size(12, 0)
    total = d.pick((d.between(0, 100), d.between(0, 3000), 2**31 - 1, 0)) if segments else 0
    options: dict = {"minimum": d.pick((0, d.between(0, total // segments), 1 if total >= segments else 0))
                     if segments else 0}
    if d.chance(50):
        most = [[d.pick((d.below(30), 0, -3, 2**31 - 1)) for _ in range(segments)] for _ in range(batch)]
        options["capacity"] = ints(d, most) if batch and segments else torch.zeros(batch, segments, dtype=torch.int32)
    return Sample("", (floats(d, batch, segments), total), options)


def select_diverse(d: Draws) -> Sample:
    batch, n, width = d.size(2, 0), d.size(24, 0), d.size(20, 0)
    k = d.between(0, n)
    objective = d.pick(("max_min", "max_sum", "dpp"))
    features = floats(d, batch, n, width, dtype=d.pick(FLOATS), most=18)
    options: dict = {"objective": objective}
    if objective == "dpp" and d.chance(40):
        options["relevance"] = floats(d, batch, n, tame=True)
    if objective != "dpp" and d.chance(40):
        options["seeds"] = index(d, (batch, d.between(0, k)), n, d.pick((torch.int64, torch.int32)))
    return Sample("", (features, k), options)


def match_bipartite(d: Draws) -> Sample:
    batch, n, width = d.size(2, 0), d.size(40, 0), d.size(20, 0)
    stride = d.between(2, max(2, n))
    protected = d.pick((0, d.between(0, n)))
    targets = n // stride - protected // stride
    sources = n - protected - targets if targets else 0
    options: dict = {"stride": stride, "protected": protected}
    if d.chance(30):
        options["source_bias"] = floats(d, batch, n)
    return Sample("", (floats(d, batch, n, width, dtype=d.pick(FLOATS), most=18), d.between(0, sources)), options)


def _features(d: Draws, most: int = 24) -> tuple[torch.Tensor, int]:
    batch, n = d.size(2, 0), d.size(most, 0)
    features = floats(d, batch, n, d.size(16, 0), dtype=d.pick(FLOATS), most=18)
    return features, d.between(1, n) if n else 0


def cluster_density_peaks(d: Draws) -> Sample:
    features, clusters = _features(d)
    return Sample("", (features, clusters), {"neighbours": d.between(1, max(1, features.shape[1]))})


def cluster_kmeans(d: Draws) -> Sample:
    features, clusters = _features(d)
    batch, n, width = features.shape
    options: dict = {"iterations": d.between(0, 3), "metric": d.pick(("l2", "cosine"))}
    if d.chance(30):
        options["weights"] = floats(d, batch, n)
    if d.chance(30):
        options["initial"] = floats(d, batch, clusters, width, most=18)
    return Sample("", (features, clusters), options)


def cluster_kmedoids(d: Draws) -> Sample:
    features, clusters = _features(d)
    return Sample("", (features, clusters), {"iterations": d.between(0, 3), "metric": d.pick(("l2", "cosine"))})
