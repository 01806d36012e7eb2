"""Oracles, hostile inputs and checks, shared by the tests, the benchmarks and anyone who writes a backend.

The oracles are written in NumPy and Python integers, apart from the ops and their references: float64 sums, and a sort
of (class, value, position) for selection. Scores are judged against float64 by the error that plain torch makes in the
same dtype; selection is judged exactly, on the scores that the backend itself returned; moved rows are judged bytewise.
"""

from collections.abc import Callable, Iterator

from .attend import argmax_samples, assert_argmax_attention, assert_cell_attention, cell_samples
from .attention import (
    assert_attention_scores,
    assert_attention_scores_varlen,
    attention_samples,
    attention_varlen_samples,
)
from .base import Sample, bytes_of, clustered, hostile_tokens, rand, run
from .budget import (
    assert_budget,
    assert_threshold,
    assert_top_p,
    budget_samples,
    threshold_samples,
    top_p_samples,
)
from .cluster import (
    assert_density_peaks,
    assert_kmeans,
    assert_kmeans_steps,
    assert_kmedoids,
    assert_kmedoids_steps,
    assert_match,
    kmeans_samples,
    kmedoids_samples,
    match_samples,
    peaks_samples,
)
from .compact import (
    assert_gather_kv,
    assert_gather_kv_inplace,
    assert_gather_tokens,
    assert_merge_tokens,
    assert_rotate_keys,
    copied,
    gather_kv_inplace_samples,
    gather_kv_samples,
    gather_tokens_samples,
    merge_samples,
    oracle_rows,
    rotate_samples,
)
from .diverse import assert_diverse, diverse_samples
from .fused import assert_prune_topk, assert_prune_topk_varlen, prune_samples, varlen_samples
from .paged import (
    assert_compact_kv_paged,
    assert_prune_topk_paged,
    assert_watermark,
    compact_samples,
    paged_samples,
    watermark_call,
)
from .pool import (
    assert_pool_span,
    assert_shuffle_tokens,
    assert_unshuffle_tokens,
    pool_samples,
    shuffle_samples,
    unshuffle_samples,
)
from .quantize import (
    assert_dequantize_kv,
    assert_quantize_kv,
    assert_round_trip,
    dequantize_samples,
    quantize_samples,
)
from .score import (
    assert_prototype_scores,
    assert_scores,
    assert_softmax,
    assert_topm,
    oracle_similarity,
    score_samples,
    softmax_samples,
    topm_samples,
)
from .select import (
    assert_quota,
    assert_topk,
    assert_topk_varlen,
    oracle_quota,
    oracle_topk,
    oracle_topk_varlen,
    quota_samples,
    topk_samples,
    topk_varlen_samples,
)
from .temporal import (
    assert_residual,
    assert_row_statistics,
    assert_temporal,
    residual_samples,
    statistics_samples,
    temporal_samples,
)

__all__ = [
    "CHECKS",
    "SAMPLES",
    "STEPS",
    "Sample",
    "assert_attention_scores",
    "assert_attention_scores_varlen",
    "assert_compact_kv_paged",
    "assert_density_peaks",
    "assert_dequantize_kv",
    "assert_diverse",
    "assert_gather_kv",
    "assert_gather_kv_inplace",
    "assert_kmeans",
    "assert_kmedoids",
    "assert_match",
    "assert_merge_tokens",
    "assert_pool_span",
    "assert_prune_topk",
    "assert_prune_topk_paged",
    "assert_quantize_kv",
    "assert_residual",
    "assert_rotate_keys",
    "assert_round_trip",
    "assert_row_statistics",
    "assert_scores",
    "assert_softmax",
    "assert_temporal",
    "assert_topm",
    "assert_watermark",
    "bytes_of",
    "clustered",
    "copied",
    "hostile_tokens",
    "oracle_quota",
    "oracle_rows",
    "oracle_similarity",
    "oracle_topk",
    "oracle_topk_varlen",
    "rand",
    "run",
    "watermark_call",
]

SAMPLES: dict[str, Callable[..., Iterator[Sample]]] = {
    "prototype_scores": score_samples,
    "prototype_topm": topm_samples,
    "prototype_softmax_scores": softmax_samples,
    "attention_scores": attention_samples,
    "attention_scores_varlen": attention_varlen_samples,
    "select_topk": topk_samples,
    "select_topk_varlen": topk_varlen_samples,
    "select_quota": quota_samples,
    "select_threshold": threshold_samples,
    "select_top_p": top_p_samples,
    "allocate_budget": budget_samples,
    "select_diverse": diverse_samples,
    "match_bipartite": match_samples,
    "cluster_density_peaks": peaks_samples,
    "cluster_kmeans": kmeans_samples,
    "cluster_kmedoids": kmedoids_samples,
    "gather_tokens": gather_tokens_samples,
    "gather_kv": gather_kv_samples,
    "gather_kv_inplace": gather_kv_inplace_samples,
    "rotate_keys": rotate_samples,
    "merge_tokens": merge_samples,
    "pool_span": pool_samples,
    "shuffle_tokens": shuffle_samples,
    "unshuffle_tokens": unshuffle_samples,
    "quantize_kv": quantize_samples,
    "dequantize_kv": dequantize_samples,
    "compact_kv_paged": compact_samples,
    "cell_attention": cell_samples,
    "argmax_attention": argmax_samples,
    "prune_topk": prune_samples,
    "prune_topk_varlen": varlen_samples,
    "prune_topk_paged": paged_samples,
    "temporal_scores": temporal_samples,
    "row_statistics": statistics_samples,
    "subspace_residual": residual_samples,
}

# For each op, the check of its outputs (on the host) for a call.
CHECKS: dict[str, Callable[..., None]] = {
    "prototype_scores": assert_prototype_scores,
    "prototype_topm": assert_topm,
    "prototype_softmax_scores": assert_softmax,
    "temporal_scores": assert_temporal,
    "row_statistics": assert_row_statistics,
    "subspace_residual": assert_residual,
    "select_topk": assert_topk,
    "select_topk_varlen": assert_topk_varlen,
    "select_quota": assert_quota,
    "select_threshold": assert_threshold,
    "select_top_p": assert_top_p,
    "allocate_budget": assert_budget,
    "select_diverse": assert_diverse,
    "match_bipartite": assert_match,
    "cluster_density_peaks": assert_density_peaks,
    "cluster_kmeans": assert_kmeans,
    "cluster_kmedoids": assert_kmedoids,
    "attention_scores": assert_attention_scores,
    "attention_scores_varlen": assert_attention_scores_varlen,
    "gather_tokens": assert_gather_tokens,
    "gather_kv": assert_gather_kv,
    "rotate_keys": assert_rotate_keys,
    "merge_tokens": assert_merge_tokens,
    "pool_span": assert_pool_span,
    "shuffle_tokens": assert_shuffle_tokens,
    "unshuffle_tokens": assert_unshuffle_tokens,
    "quantize_kv": assert_quantize_kv,
    "dequantize_kv": assert_dequantize_kv,
    "compact_kv_paged": assert_compact_kv_paged,
    "cell_attention": assert_cell_attention,
    "argmax_attention": assert_argmax_attention,
    "prune_topk": assert_prune_topk,
    "prune_topk_varlen": assert_prune_topk_varlen,
    "prune_topk_paged": assert_prune_topk_paged,
}

# For each op that iterates, the check of every iteration: each result of `run`, which is called as the op is, has to
# follow from the one before. `CHECKS` sees only the last one, whose centres could be those of any other clustering.
STEPS: dict[str, Callable[..., None]] = {
    "cluster_kmeans": assert_kmeans_steps,
    "cluster_kmedoids": assert_kmedoids_steps,
}
