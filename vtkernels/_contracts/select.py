"""Contracts of the ops that select tokens, or sort them into groups."""

import math
from typing import Any

import torch
from torch import Tensor

from .. import _checks as check
from .spec import Spec

ORDERS = ("index", "score")
OBJECTIVES = ("max_min", "max_sum", "dpp")
CLUSTER_METRICS = ("l2", "cosine")


def _check_scores(op: str, scores: Tensor, dims: str, arg: str = "scores") -> None:
    check.dense(op, arg, scores)
    if scores.dtype != torch.float32:
        check.fail(TypeError, op, arg, f"a tensor of {check.names([scores.dtype])}", "float32")
    check.rank(op, arg, scores, dims)


def _check_masks(op: str, scores: Tensor, **masks: Tensor | None) -> None:
    for arg, mask in masks.items():
        if mask is None:
            continue
        check.dense(op, arg, mask)
        if mask.dtype != torch.bool:
            check.fail(TypeError, op, arg, f"a tensor of {check.names([mask.dtype])}", "bool")
        if tuple(mask.shape) != tuple(scores.shape):
            check.fail(ValueError, op, arg, f"of shape {check.shape(mask)}",
                       f"{check.shape(scores)} (that of `scores`)")
        check.same_device(op, arg, mask, "scores", scores)


def select_topk(scores: Tensor, k: int, *, largest: bool = True, ks: Tensor | None = None,
                protected: Tensor | None = None, excluded: Tensor | None = None, order: str = "index") -> Spec:
    op = "select_topk"
    _check_scores(op, scores, "B, N")
    check.in_range(op, "k", k, 0, scores.shape[1], "the row has N scores")
    if ks is not None:
        check.vector(op, "ks", ks, scores.shape[0], (torch.int32,), scores, "B")
    _check_masks(op, scores, protected=protected, excluded=excluded)
    check.choice(op, "order", order, ORDERS)
    return Spec((scores.shape[0], k), torch.int64, scores.device)


def select_topk_varlen(scores: Tensor, cu_seqlens: Tensor, k: Tensor, total_out: int, *, largest: bool = True,
                       protected: Tensor | None = None, excluded: Tensor | None = None,
                       order: str = "index") -> tuple[Spec, Spec]:
    op = "select_topk_varlen"
    _check_scores(op, scores, "T")
    check.dense(op, "k", k)
    check.rank(op, "k", k, "B")
    batch = k.shape[0]
    check.vector(op, "k", k, batch, (torch.int32,), scores, "B")
    check.vector(op, "cu_seqlens", cu_seqlens, batch + 1, (torch.int32,), scores, "B + 1")
    check.in_range(op, "total_out", total_out, 0, scores.shape[0], "at most the T packed scores")
    _check_masks(op, scores, protected=protected, excluded=excluded)
    check.choice(op, "order", order, ORDERS)
    return (Spec((total_out,), torch.int64, scores.device), Spec((batch + 1,), torch.int32, scores.device))


def select_quota(scores: Tensor, cu_segments: Tensor, k: int, quota: int, *, largest: bool = True,
                 protected: Tensor | None = None, excluded: Tensor | None = None, order: str = "index") -> Spec:
    op = "select_quota"
    _check_scores(op, scores, "B, N")
    check.dense(op, "cu_segments", cu_segments)
    check.rank(op, "cu_segments", cu_segments, "S + 1")
    check.in_range(op, "cu_segments", cu_segments.shape[0], 1, 2**31 - 1, "its length, S + 1")
    segments = cu_segments.shape[0] - 1
    check.vector(op, "cu_segments", cu_segments, segments + 1, (torch.int32,), scores, "S + 1")
    check.in_range(op, "k", k, 0, scores.shape[1], "the row has N scores")
    check.in_range(op, "quota", quota, 0, k // segments if segments else k, "all segments' quotas fit into k")
    _check_masks(op, scores, protected=protected, excluded=excluded)
    check.choice(op, "order", order, ORDERS)
    return Spec((scores.shape[0], k), torch.int64, scores.device)


def _ragged(scores: Tensor) -> tuple[Spec, Spec, Spec]:
    """Padded indices [B, N], counts [B], cu_seqlens [B + 1]."""
    batch, n = scores.shape
    return (Spec((batch, n), torch.int64, scores.device), Spec((batch,), torch.int32, scores.device),
            Spec((batch + 1,), torch.int32, scores.device))


def select_threshold(scores: Tensor, threshold: float, *, largest: bool = True, min_keep: int = 0,
                     thresholds: Tensor | None = None) -> tuple[Spec, Spec, Spec]:
    op = "select_threshold"
    _check_scores(op, scores, "B, N")
    if isinstance(threshold, float) and math.isnan(threshold):
        check.fail(ValueError, op, "threshold", "nan", "a number, which may be infinite")
    check.in_range(op, "min_keep", min_keep, 0, scores.shape[1], "the row has N scores")
    if thresholds is not None:
        check.vector(op, "thresholds", thresholds, scores.shape[0], (torch.float32,), scores, "B")
    return _ragged(scores)


def select_top_p(scores: Tensor, p: float, *, min_keep: int = 1) -> tuple[Spec, Spec, Spec]:
    op = "select_top_p"
    _check_scores(op, scores, "B, N")
    if not 0 < p <= 1:
        check.fail(ValueError, op, "p", p, "above 0, at most 1")
    check.in_range(op, "min_keep", min_keep, 0, max(1, scores.shape[1]), "the row has N scores")
    return _ragged(scores)


def allocate_budget(weights: Tensor, total: int, *, minimum: int = 0, capacity: Tensor | None = None) -> Spec:
    op = "allocate_budget"
    _check_scores(op, weights, "B, S", "weights")
    batch, segments = weights.shape
    check.in_range(op, "total", total, 0, 2**31 - 1 if segments else 0, "tokens of all segments")
    check.in_range(op, "minimum", minimum, 0, total // segments if segments else 0, "every segment's minimum fits")
    if capacity is not None:
        check.dense(op, "capacity", capacity)
        if capacity.dtype != torch.int32:
            check.fail(TypeError, op, "capacity", f"a tensor of {check.names([capacity.dtype])}", "int32")
        if tuple(capacity.shape) != tuple(weights.shape):
            check.fail(ValueError, op, "capacity", f"of shape {check.shape(capacity)}",
                       f"{check.shape(weights)} (that of `weights`)")
        check.same_device(op, "capacity", capacity, "weights", weights)
    return Spec((batch, segments), torch.int32, weights.device)


def _check_features(op: str, features: Tensor, arg: str = "features") -> None:
    check.floating(op, arg, features)
    check.rank(op, arg, features, "B, N, D")


def select_diverse(features: Tensor, k: int, *, objective: str = "max_min", relevance: Tensor | None = None,
                   seeds: Tensor | None = None) -> tuple[Spec, Spec]:
    op = "select_diverse"
    _check_features(op, features)
    batch, n, _ = features.shape
    check.in_range(op, "k", k, 0, n, "the row has N tokens")
    check.choice(op, "objective", objective, OBJECTIVES)
    if relevance is not None:
        if objective != "dpp":
            check.fail(ValueError, op, "relevance", "given", f"None with objective={objective!r}")
        _check_scores(op, relevance, "B, N", "relevance")
        check.size(op, "relevance", relevance.shape[0], batch, "B")
        check.size(op, "relevance", relevance.shape[1], n, "N")
        check.same_device(op, "relevance", relevance, "features", features)
    if seeds is not None:
        if objective == "dpp":
            check.fail(ValueError, op, "seeds", "given", "None with objective='dpp'")
        check.dense(op, "seeds", seeds)
        if seeds.dtype not in check.INDEX_DTYPES:
            check.fail(TypeError, op, "seeds", f"a tensor of {check.names([seeds.dtype])}",
                       check.names(check.INDEX_DTYPES))
        check.rank(op, "seeds", seeds, "B, S")
        check.size(op, "seeds", seeds.shape[0], batch, "B")
        check.in_range(op, "seeds", seeds.shape[1], 0, k, "the number of seeds, at most k")
        check.same_device(op, "seeds", seeds, "features", features)
    spec = Spec((batch, k), torch.int64, features.device)
    return spec, spec


def match_bipartite(tokens: Tensor, r: int, *, stride: int = 2, protected: int = 0,
                    source_bias: Tensor | None = None) -> tuple[Spec, Spec, Spec, Spec]:
    op = "match_bipartite"
    _check_features(op, tokens, "tokens")
    batch, n, _ = tokens.shape
    check.in_range(op, "stride", stride, 2, max(2, n), "every stride-th token is a target")
    check.in_range(op, "protected", protected, 0, n, "leading tokens that are never merged")
    targets = n // stride - protected // stride
    sources = n - protected - targets if targets else 0
    check.in_range(op, "r", r, 0, sources, "the sources: tokens that are neither protected nor targets")
    if source_bias is not None:
        _check_scores(op, source_bias, "B, N", "source_bias")
        check.size(op, "source_bias", source_bias.shape[0], batch, "B")
        check.size(op, "source_bias", source_bias.shape[1], n, "N")
        check.same_device(op, "source_bias", source_bias, "tokens", tokens)
    merged = Spec((batch, r), torch.int64, tokens.device)
    return (merged, merged, Spec((batch, r), torch.float32, tokens.device),
            Spec((batch, n - r), torch.int64, tokens.device))


def _check_clusters(op: str, features: Tensor, clusters: Any) -> None:
    _check_features(op, features)
    n = features.shape[1]
    check.in_range(op, "clusters", clusters, 1 if n else 0, n, "the row has N tokens")


def cluster_density_peaks(features: Tensor, clusters: int, *, neighbours: int = 5) -> tuple[Spec, Spec]:
    op = "cluster_density_peaks"
    _check_clusters(op, features, clusters)
    batch, n, _ = features.shape
    check.in_range(op, "neighbours", neighbours, 1, max(1, n), "the row has N tokens, each its own first neighbour")
    return _assignment(features), Spec((batch, clusters), torch.int64, features.device)


def cluster_kmeans(features: Tensor, clusters: int, *, iterations: int = 10, metric: str = "l2",
                   weights: Tensor | None = None, initial: Tensor | None = None) -> tuple[Spec, Spec]:
    op = "cluster_kmeans"
    _check_clusters(op, features, clusters)
    batch, n, d = features.shape
    check.in_range(op, "iterations", iterations, 0, 2**31 - 1, "0 assigns to the initial centres")
    check.choice(op, "metric", metric, CLUSTER_METRICS)
    if weights is not None:
        _check_scores(op, weights, "B, N", "weights")
        check.size(op, "weights", weights.shape[0], batch, "B")
        check.size(op, "weights", weights.shape[1], n, "N")
        check.same_device(op, "weights", weights, "features", features)
    if initial is not None:
        _check_scores(op, initial, "B, K, D", "initial")
        for dim, want, what in ((0, batch, "B"), (1, clusters, "K (`clusters`)"), (2, d, "D")):
            check.size(op, "initial", initial.shape[dim], want, what)
        check.same_device(op, "initial", initial, "features", features)
    return _assignment(features), Spec((batch, clusters, d), torch.float32, features.device)


def cluster_kmedoids(features: Tensor, clusters: int, *, iterations: int = 100,
                     metric: str = "l2") -> tuple[Spec, Spec]:
    op = "cluster_kmedoids"
    _check_clusters(op, features, clusters)
    check.in_range(op, "iterations", iterations, 0, 2**31 - 1, "0 assigns to the initial medoids")
    check.choice(op, "metric", metric, CLUSTER_METRICS)
    return _assignment(features), Spec((features.shape[0], clusters), torch.int64, features.device)


def _assignment(features: Tensor) -> Spec:
    return Spec(tuple(features.shape[:2]), torch.int64, features.device)
