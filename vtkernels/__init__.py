"""vtkernels: fast, exact kernels for visual-token reduction in multimodal LLMs (score, select, compact)."""

from . import _dispatch, nn, prototypes
from ._dispatch import explain
from ._library import workspace_size
from ._version import __version__
from .compact.gather_kv import gather_kv
from .compact.gather_tokens import gather_tokens
from .fused.prune_topk import prune_topk
from .fused.prune_topk_varlen import prune_topk_varlen
from .score.prototype_scores import prototype_scores
from .select.select_topk import select_topk

__all__ = [
    "__version__",
    "explain",
    "gather_kv",
    "gather_tokens",
    "nn",
    "prototype_scores",
    "prototypes",
    "prune_topk",
    "prune_topk_varlen",
    "select_topk",
    "workspace_size",
]

_dispatch.register()
