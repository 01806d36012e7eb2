"""The contract: the schema of every op. What each one checks and returns is in `_contracts`, a file per stage.

A function of `_contracts` checks the arguments of one op (metadata only) and returns what comes out as `Spec`s. The
fake implementation that the compiler sees allocates from these specs, and so does every backend written in Python, so
the two cannot drift apart. Outputs are contiguous. The `.out` variants write into buffers of the caller.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _checks as check
from ._contracts import attend, compact, fused, score, select
from ._contracts.fused import workspace_size
from ._contracts.spec import Spec, allocate
from ._ops import add_op_namespace_prefix
from ._ops import ops as OPS

__all__ = ["CONTRACTS", "OPS", "OUT_ARGS", "SCHEMAS", "Spec", "allocate", "workspace_size"]

NAMESPACE: str = OPS.name

_PROTOTYPES = "Tensor tokens, Tensor prototypes"
_RNORM = "Tensor? prototype_rnorm=None"
_ATTENTION = "Tensor? lse=None, Tensor? row_weights=None, float? scale=None, bool causal=False"
_REDUCE = "str reduce_rows='mean', str reduce_heads='mean', bool logits=False"
_MASKS = "Tensor? protected=None, Tensor? excluded=None, str order='index'"
# torch's schema language has no default for a list of tensors, so "no caches" is None.
_KV = "Tensor[]? kv=None, *, bool keep_similar=False"
# Pools of pages, changed in place.
_PAGES = "Tensor(k!)[] kv, Tensor block_table, Tensor seq_lens"
_PAGE_OPTIONS = "Tensor? dst_block_table=None, str kv_layout='NHD', bool allow_shared=False"
_PAGE_RESULTS = "Tensor out_seq_lens, Tensor out_slot_mapping, Tensor out_freed_blocks"

# Arguments of each op, then its outputs. The `.out` variant takes each output as a buffer of the same name.
_OPS: dict[str, tuple[str, str]] = {
    "prototype_scores": (f"{_PROTOTYPES}, *, str metric='cosine', {_RNORM}", "Tensor scores, Tensor argmax"),
    "prototype_topm": (f"{_PROTOTYPES}, SymInt m, *, str metric='cosine', {_RNORM}", "Tensor scores, Tensor indices"),
    "prototype_softmax_scores": (f"{_PROTOTYPES}, *, bool over_tokens=False, {_RNORM}", "Tensor out"),
    "attention_scores": (f"Tensor query, Tensor key, *, {_ATTENTION}, SymInt? causal_offset=None, SymInt key_start=0, "
                         f"SymInt key_len=-1, {_REDUCE}, str layout='HND'", "Tensor out"),
    "attention_scores_varlen": ("Tensor query, Tensor key, Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt total_k, "
                                "SymInt max_seqlen_q, SymInt max_seqlen_k, *, Tensor? block_table=None, "
                                f"{_ATTENTION}, {_REDUCE}, str kv_layout='NHD'", "Tensor out"),
    "temporal_scores": ("Tensor tokens, *, str metric='cosine', float? first=None", "Tensor out"),
    "row_statistics": ("Tensor rows", "Tensor l1, Tensor l2, Tensor entropy"),
    "subspace_residual": ("Tensor tokens, Tensor basis", "Tensor out"),
    "select_topk": (f"Tensor scores, SymInt k, *, bool largest=True, Tensor? ks=None, {_MASKS}", "Tensor out"),
    "select_topk_varlen": (f"Tensor scores, Tensor cu_seqlens, Tensor k, SymInt total_out, *, bool largest=True, "
                           f"{_MASKS}", "Tensor out_indices, Tensor out_cu_seqlens"),
    "select_quota": (f"Tensor scores, Tensor cu_segments, SymInt k, SymInt quota, *, bool largest=True, {_MASKS}",
                     "Tensor out"),
    "select_threshold": ("Tensor scores, float threshold, *, bool largest=True, SymInt min_keep=0, "
                         "Tensor? thresholds=None", "Tensor out_indices, Tensor out_counts, Tensor out_cu_seqlens"),
    "select_top_p": ("Tensor scores, float p, *, SymInt min_keep=1",
                     "Tensor out_indices, Tensor out_counts, Tensor out_cu_seqlens"),
    "allocate_budget": ("Tensor weights, SymInt total, *, SymInt minimum=0, Tensor? capacity=None", "Tensor out"),
    "select_diverse": ("Tensor features, SymInt k, *, str objective='max_min', Tensor? relevance=None, "
                       "Tensor? seeds=None", "Tensor out_order, Tensor out_indices"),
    "match_bipartite": ("Tensor tokens, SymInt r, *, SymInt stride=2, SymInt protected=0, Tensor? source_bias=None",
                        "Tensor out_sources, Tensor out_targets, Tensor out_scores, Tensor out_kept"),
    "cluster_density_peaks": ("Tensor features, SymInt clusters, *, SymInt neighbours=5",
                              "Tensor out_assignment, Tensor out_centres"),
    "cluster_kmeans": ("Tensor features, SymInt clusters, *, SymInt iterations=10, str metric='l2', "
                       "Tensor? weights=None, Tensor? initial=None", "Tensor out_assignment, Tensor out_centres"),
    "cluster_kmedoids": ("Tensor features, SymInt clusters, *, SymInt iterations=100, str metric='l2'",
                         "Tensor out_assignment, Tensor out_medoids"),
    "gather_tokens": ("Tensor[] tensors, Tensor indices, *, int[]? token_dims=None", "Tensor[] out"),
    "gather_kv": ("Tensor[] kv, Tensor indices, *, str kv_layout='HND'", "Tensor[] out"),
    "gather_kv_inplace": ("Tensor(k!)[] kv, Tensor indices, *, str kv_layout='HND'", ""),
    "rotate_keys": ("Tensor keys, Tensor deltas, Tensor inv_freq, *, bool interleaved=False, str kv_layout='HND'",
                    "Tensor out"),
    "merge_tokens": ("Tensor tokens, Tensor assignment, SymInt groups, *, Tensor? weights=None, str reduce='mean'",
                     "Tensor out_tokens, Tensor out_sizes"),
    "compact_kv_paged": (f"{_PAGES}, Tensor indices, *, Tensor? counts=None, {_PAGE_OPTIONS}", _PAGE_RESULTS),
    "cell_attention": ("Tensor query, Tensor key, Tensor value, SymInt grid_width, SymInt cell, *, float? scale=None",
                       "Tensor out"),
    "argmax_attention": ("Tensor query, Tensor key, *, Tensor? allowed=None", "Tensor out, Tensor out_indices"),
    "pool_span": ("Tensor tokens, SymInt window, *, SymInt window_width=0, SymInt grid_width=0, SymInt span_start=0, "
                  "SymInt span_len=-1, bool ceil=False", "Tensor out"),
    "shuffle_tokens": ("Tensor tokens, SymInt grid_width, SymInt factor=2, *, str order='window'", "Tensor out"),
    "unshuffle_tokens": ("Tensor tokens, SymInt grid_width, SymInt factor=2, *, str order='window'", "Tensor out"),
    "quantize_kv": ("Tensor key, Tensor value, Tensor[] indices, int[] bits",
                    "Tensor[] out_key_codes, Tensor[] out_key_params, Tensor[] out_value_codes, "
                    "Tensor[] out_value_params, Tensor[] out_value_scales"),
    "dequantize_kv": ("Tensor[] key_codes, Tensor[] key_params, Tensor[] value_codes, Tensor[] value_params, "
                      "Tensor[] value_scales, Tensor[] indices, int[] bits, SymInt tokens, *, ScalarType dtype",
                      "Tensor out_key, Tensor out_value"),
    "prune_topk": (f"Tensor hidden, Tensor prototypes, SymInt k, {_KV}, SymInt span_start=0, SymInt span_len=-1, "
                   f"Tensor? span_starts=None, {_RNORM}, str kv_layout='HND'",
                   "Tensor out_hidden, Tensor[] out_kv, Tensor out_indices, Tensor out_scores"),
    "prune_topk_varlen": (f"Tensor hidden, Tensor prototypes, Tensor cu_seqlens, Tensor k, SymInt total_out, {_KV}, "
                          f"Tensor? span_starts=None, Tensor? span_lens=None, {_RNORM}, str kv_layout='HND'",
                          "Tensor out_hidden, Tensor[] out_kv, Tensor out_indices, Tensor out_scores, "
                          "Tensor out_cu_seqlens"),
    "prune_topk_paged": (f"Tensor hidden, Tensor prototypes, Tensor cu_seqlens, Tensor k, SymInt total_out, {_PAGES}, "
                         f"*, bool keep_similar=False, Tensor? context_lens=None, Tensor? span_starts=None, "
                         f"Tensor? span_lens=None, {_RNORM}, {_PAGE_OPTIONS}",
                         f"Tensor out_hidden, Tensor out_indices, Tensor out_scores, Tensor out_cu_seqlens, "
                         f"{_PAGE_RESULTS}"),
}

# Ops that keep counters in device memory: their `.out` takes zeroed int32 words and leaves them zeroed.
WORKSPACE: dict[str, Callable[..., Any]] = {
    "prune_topk": lambda hidden, *_, **__: workspace_size(hidden.shape[0]),
    "prune_topk_varlen": lambda hidden, prototypes, cu_seqlens, k, *_, **__: workspace_size(k.shape[0]),
    "prune_topk_paged": lambda hidden, prototypes, cu_seqlens, k, *_, **__: workspace_size(k.shape[0]),
}
# Ops that read indices, spans or lengths on the device: their `.out` takes a status word.
STATUS = {"attention_scores_varlen", "select_topk_varlen", "select_quota", "select_diverse", "gather_tokens",
          "gather_kv", "gather_kv_inplace", "merge_tokens", "quantize_kv", "dequantize_kv", "compact_kv_paged",
          *WORKSPACE}

# Ops with kernels in CUDA C++, for engines without Triton.
CUDA_OPS = {"prototype_scores", "attention_scores", "temporal_scores", "select_topk", "select_topk_varlen",
            "select_threshold", "select_top_p", "match_bipartite", "gather_tokens", "gather_kv", "gather_kv_inplace",
            "rotate_keys", "quantize_kv", "dequantize_kv", "compact_kv_paged", "prune_topk", "prune_topk_varlen",
            "prune_topk_paged"}

# Bits that an op with a `status` word (int32 [1]) ORs into it when device-side metadata was out of range.
STATUS_BAD_INDEX = 1      # an index outside its row: that output row is zero-filled
STATUS_BAD_SPAN = 2       # a span outside its row or a k outside the span: clamped
STATUS_BAD_SEQLENS = 4    # cu_seqlens not starting at 0, decreasing, or past T: clamped
STATUS_TRUNCATED = 8      # more tokens kept than `total_out` holds: the rest is dropped
STATUS_BAD_PAGE = 16      # a page number outside the pool: that row is left as it was
STATUS_SHARED_PAGE = 32   # a page that must be the row's own is named twice: that row is left as it was


def _schemas(op: str, args: str, outputs: str) -> dict[str, str]:
    """`op` and `op.out`. Outputs are (a!), (b!), .. in the order of their names."""
    results = outputs.split(", ") if outputs else []
    returns = [r.replace(" out_", " ") for r in results]
    returned = returns[0].split()[0] if len(returns) == 1 else f"({', '.join(returns)})"
    kinds = results + ["Tensor? workspace"] * (op in WORKSPACE) + ["Tensor? status"] * (op in STATUS)
    written = []
    for letter, kind in zip("abcdefghij", kinds, strict=False):
        dtype, name = kind.split()
        mark = dtype.replace("Tensor", f"Tensor({letter}!)")
        written.append(f"{mark} {name}" + ("=None" if "?" in dtype else ""))
    separator = ", " if "*, " in args else ", *, "
    return {op: f"({args}) -> {returned}", f"{op}.out": f"({args}{separator}{', '.join(written)}) -> ()"}


SCHEMAS = {name: schema for op, (args, outputs) in _OPS.items() for name, schema in _schemas(op, args, outputs).items()}

# The outputs of each op, by their names in the `.out` variant. An op that only changes its arguments has none.
OUT_ARGS = {op: tuple(o.split()[1] for o in outputs.split(", ") if o) for op, (_, outputs) in _OPS.items()}


def _out_contract(op: str, contract: Callable) -> Callable:
    """The checks of an `.out` variant: those of the op, and buffers that can hold its outputs."""

    def check_out(*args: Any, workspace: Tensor | None = None, status: Tensor | None = None, **kwargs: Any) -> None:
        buffers = [kwargs.pop(name) for name in OUT_ARGS[op]]
        like = contract(*args, **kwargs)
        first = next(t for t in (*args, *kwargs.values()) if isinstance(t, (Tensor, list, tuple)))
        ref = first if isinstance(first, Tensor) else first[0]
        for arg, buffer, spec in zip(OUT_ARGS[op], buffers, like if len(buffers) > 1 else (like,)[:len(buffers)],
                                     strict=True):
            _check_output(f"{op}.out", arg, buffer, spec)
        check.status_word(f"{op}.out", status, ref)
        if workspace is not None:
            _check_workspace(f"{op}.out", workspace, WORKSPACE[op](*args, **kwargs), ref)

    return check_out


def _check_output(op: str, arg: str, buffer: Any, spec: Spec | Sequence[Spec]) -> None:
    if isinstance(spec, Spec):
        check.output(op, arg, buffer, spec, check.INDEX_DTYPES if spec.dtype == torch.int64 else None)
        return
    check.size(op, arg, len(buffer), len(spec), "tensors (one for each input)")
    for i, (b, s) in enumerate(zip(buffer, spec, strict=True)):
        check.output(op, f"{arg}[{i}]", b, s)


def _check_workspace(op: str, workspace: Tensor, words: Any, ref: Tensor) -> None:
    check.dense(op, "workspace", workspace)
    if workspace.dtype != torch.int32 or workspace.dim() != 1 or workspace.shape[0] < words:
        got = f"{check.names([workspace.dtype])} of shape {check.shape(workspace)}"
        check.fail(ValueError, op, "workspace", got, f"a zeroed int32 vector of at least {words} words")
    check.same_device(op, "workspace", workspace, "the input", ref)


CONTRACTS: dict[str, Callable] = {}
for _op in _OPS:
    _contract = next(getattr(stage, _op) for stage in (score, select, compact, attend, fused) if hasattr(stage, _op))
    CONTRACTS |= {_op: _contract, f"{_op}.out": _out_contract(_op, _contract)}

LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
# The CUDA C++ kernels stand in a namespace of their own: one launcher per public op chooses between them and Triton.
CUDA_NAMESPACE = f"{NAMESPACE}_cuda"
CUDA_LIBRARY = torch.library.Library(CUDA_NAMESPACE, "FRAGMENT")


def _fake(name: str) -> Any:
    contract = CONTRACTS[name]
    if name.endswith(".out"):
        return contract
    return lambda *args, **kwargs: allocate(contract(*args, **kwargs))


for _name, _schema in SCHEMAS.items():
    LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(add_op_namespace_prefix(_name), _fake(_name), lib=LIBRARY)
    if _name.removesuffix(".out") in CUDA_OPS and _name.endswith(".out"):
        CUDA_LIBRARY.define(_name + _schema)
