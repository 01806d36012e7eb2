"""vtkernels: fast, exact kernels for visual-token reduction in multimodal LLMs (score, select, compact)."""

from . import _dispatch, attend, methods, nn, prototypes
from ._dispatch import explain
from ._library import workspace_size
from ._version import __version__
from .attend.argmax_attention import argmax_attention
from .attend.cell_attention import cell_attention
from .compact.compact_kv_paged import compact_kv_paged
from .compact.dequantize_kv import dequantize_kv
from .compact.gather_kv import gather_kv
from .compact.gather_kv_inplace import gather_kv_inplace
from .compact.gather_tokens import gather_tokens
from .compact.merge_tokens import merge_assignment, merge_tokens, unmerge_tokens
from .compact.pool_span import pool_positions, pool_span
from .compact.quantize_kv import importance_classes, quantize_kv
from .compact.recycle import contextual_tokens, interleave_tokens, recycle_tokens
from .compact.rotate_keys import mrope_inv_freq, rotate_keys
from .compact.shuffle_tokens import shuffle_tokens
from .compact.unshuffle_tokens import unshuffle_tokens
from .fused.prune_topk import prune_topk
from .fused.prune_topk_paged import prune_topk_paged
from .fused.prune_topk_varlen import prune_topk_varlen
from .score.attention_scores import attention_scores
from .score.attention_scores_varlen import attention_scores_varlen
from .score.prototype_scores import prototype_scores
from .score.prototype_softmax_scores import prototype_softmax_scores
from .score.prototype_topm import prototype_topm
from .score.row_statistics import row_statistics
from .score.subspace_residual import orthonormal_basis, subspace_residual
from .score.temporal_scores import temporal_scores
from .select.allocate_budget import allocate_budget
from .select.cluster_density_peaks import cluster_density_peaks
from .select.cluster_kmeans import cluster_kmeans
from .select.cluster_kmedoids import cluster_kmedoids
from .select.match_bipartite import match_bipartite
from .select.select_diverse import select_diverse
from .select.select_quota import select_quota
from .select.select_threshold import select_threshold
from .select.select_top_p import select_top_p
from .select.select_topk import select_topk
from .select.select_topk_varlen import select_topk_varlen

__all__ = [
    "__version__",
    "allocate_budget",
    "argmax_attention",
    "attend",
    "attention_scores",
    "attention_scores_varlen",
    "cell_attention",
    "cluster_density_peaks",
    "cluster_kmeans",
    "cluster_kmedoids",
    "compact_kv_paged",
    "contextual_tokens",
    "dequantize_kv",
    "explain",
    "gather_kv",
    "gather_kv_inplace",
    "gather_tokens",
    "importance_classes",
    "interleave_tokens",
    "match_bipartite",
    "merge_assignment",
    "merge_tokens",
    "methods",
    "mrope_inv_freq",
    "nn",
    "orthonormal_basis",
    "pool_positions",
    "pool_span",
    "prototype_scores",
    "prototype_softmax_scores",
    "prototype_topm",
    "prototypes",
    "prune_topk",
    "prune_topk_paged",
    "prune_topk_varlen",
    "quantize_kv",
    "recycle_tokens",
    "rotate_keys",
    "row_statistics",
    "select_diverse",
    "select_quota",
    "select_threshold",
    "select_top_p",
    "select_topk",
    "select_topk_varlen",
    "shuffle_tokens",
    "subspace_residual",
    "temporal_scores",
    "unmerge_tokens",
    "unshuffle_tokens",
    "workspace_size",
]

_dispatch.register()
