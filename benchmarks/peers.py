"""What a user writes without vtkernels, at its best: eager loops, a better eager, both compiled; and two floors.

A peer returns the outputs of the op. `eager` is the usual code of published methods. `better` never normalises the
tokens, leaves `topk` unsorted and uses `index_select` where it can. `upcast` is `better` on inputs turned to float32,
which some CPUs do faster than low precision. The floors do less than the op and are not ranked: `matmul`, the products
alone, and `copy`, as many bytes as the op needs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import families
from .call import Call
from .case import Case

Runner = Callable[[Call], Any]


def _normalized_scores(hidden: Tensor, prototypes: Tensor) -> Tensor:
    return F.normalize(hidden, dim=-1) @ F.normalize(prototypes, dim=-1).T


def _cosines(hidden: Tensor, prototypes: Tensor) -> Tensor:
    """Largest cosine of each token, with one pass over the products and no normalised copy of the tokens."""
    return (hidden @ F.normalize(prototypes, dim=-1).T).amax(-1) / torch.linalg.vector_norm(hidden, dim=-1)


def _gather(t: Tensor, indices: Tensor, dim: int) -> Tensor:
    """Rows `indices` [B, k] along `dim` of `t` [B, ..]."""
    view = [1] * t.dim()
    view[0], view[dim] = indices.shape
    shape = list(t.shape)
    shape[dim] = indices.shape[1]
    return t.gather(dim, indices.view(view).expand(shape))


def _take(t: Tensor, indices: Tensor, dim: int) -> Tensor:
    return t.index_select(dim, indices[0]) if len(indices) == 1 else _gather(t, indices, dim)


def prune_eager(hidden: Tensor, prototypes: Tensor, k: int, kv: Sequence[Tensor]) -> Any:
    scores = _normalized_scores(hidden, prototypes).amax(-1)
    indices = scores.topk(k, largest=False).indices.sort().values
    return _gather(hidden, indices, 1), [_gather(t, indices, 2) for t in kv], indices, scores


def prune_better(hidden: Tensor, prototypes: Tensor, k: int, kv: Sequence[Tensor]) -> Any:
    scores = _cosines(hidden, prototypes)
    indices = scores.topk(k, largest=False, sorted=False).indices.sort().values
    return _take(hidden, indices, 1), [_take(t, indices, 2) for t in kv], indices, scores


def prune_upcast(hidden: Tensor, prototypes: Tensor, k: int, kv: Sequence[Tensor]) -> Any:
    scores = _cosines(hidden.float(), prototypes.float())
    indices = scores.topk(k, largest=False, sorted=False).indices.sort().values
    return _take(hidden, indices, 1), [_take(t, indices, 2) for t in kv], indices, scores


def _bounds(lengths: Sequence[int]) -> list[tuple[int, int]]:
    ends = [sum(lengths[:i + 1]) for i in range(len(lengths))]
    return [(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def _cu_seqlens(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(0), (1, 0)).to(torch.int32)


def varlen_eager(hidden: Tensor, prototypes: Tensor, lengths: Sequence[int], ks: Sequence[int],
                 counts: Tensor, kv: Sequence[Tensor]) -> Any:
    """One sequence after the other, then concatenated."""
    parts = []
    for (begin, end), k in zip(_bounds(lengths), ks, strict=True):
        rows = [t[None, :, begin:end] for t in kv]
        parts.append((*prune_eager(hidden[None, begin:end], prototypes, k, rows), begin))
    return (torch.cat([p[0][0] for p in parts]), [torch.cat([p[1][i][0] for p in parts], 1) for i in range(len(kv))],
            torch.cat([p[2][0] + p[4] for p in parts]), torch.cat([p[3][0] for p in parts]), _cu_seqlens(counts))


def varlen_better(hidden: Tensor, prototypes: Tensor, lengths: Sequence[int], ks: Sequence[int],
                  counts: Tensor, kv: Sequence[Tensor]) -> Any:
    """One product and one gather for all sequences, a selection for each."""
    scores = _cosines(hidden, prototypes)
    indices = torch.cat([begin + scores[begin:end].topk(k, largest=False, sorted=False).indices
                         for (begin, end), k in zip(_bounds(lengths), ks, strict=True)]).sort().values
    return (hidden.index_select(0, indices), [t.index_select(1, indices) for t in kv], indices, scores,
            _cu_seqlens(counts))


def varlen_upcast(hidden: Tensor, prototypes: Tensor, lengths: Sequence[int], ks: Sequence[int],
                  counts: Tensor, kv: Sequence[Tensor]) -> Any:
    _, _, indices, scores, cu_seqlens = varlen_better(hidden.float(), prototypes.float(), lengths, ks, counts, [])
    return hidden.index_select(0, indices), [t.index_select(1, indices) for t in kv], indices, scores, cu_seqlens


def scores_eager(tokens: Tensor, prototypes: Tensor) -> Any:
    best = _normalized_scores(tokens, prototypes).max(-1)
    return best.values, best.indices


def scores_better(tokens: Tensor, prototypes: Tensor) -> Any:
    best = (tokens @ F.normalize(prototypes, dim=-1).T).max(-1)
    return best.values / torch.linalg.vector_norm(tokens, dim=-1), best.indices


def scores_upcast(tokens: Tensor, prototypes: Tensor) -> Any:
    return scores_better(tokens.float(), prototypes.float())


def select_eager(scores: Tensor, k: int) -> Tensor:
    return scores.topk(k, largest=False).indices.sort().values


def select_better(scores: Tensor, k: int) -> Tensor:
    return scores.topk(k, largest=False, sorted=False).indices.sort().values


def select_sort(scores: Tensor, k: int) -> Tensor:
    return scores.sort(stable=True).indices[:, :k].sort().values


def tokens_eager(tensors: Sequence[Tensor], indices: Tensor, dims: Sequence[int]) -> list[Tensor]:
    hidden, position_ids = tensors
    return [_gather(hidden, indices, dims[0]), position_ids.gather(dims[1], indices.expand(len(position_ids), -1, -1))]


def tokens_better(tensors: Sequence[Tensor], indices: Tensor, dims: Sequence[int]) -> list[Tensor]:
    hidden, position_ids = tensors
    if len(indices) > 1:
        return tokens_eager(tensors, indices, dims)
    return [hidden.index_select(dims[0], indices[0]), position_ids.index_select(dims[1], indices[0])]


def kv_eager(kv: Sequence[Tensor], indices: Tensor) -> list[Tensor]:
    return [_gather(t, indices, 2) for t in kv]


def kv_better(kv: Sequence[Tensor], indices: Tensor) -> list[Tensor]:
    return [_take(t, indices, 2) for t in kv]


EAGER: dict[str, dict[str, Callable]] = {
    "prototype_scores": {"eager": scores_eager, "better": scores_better, "upcast": scores_upcast},
    "select_topk": {"eager": select_eager, "better": select_better, "sort": select_sort},
    "gather_tokens": {"eager": tokens_eager, "better": tokens_better},
    "gather_kv": {"eager": kv_eager, "better": kv_better},
    "prune_topk": {"eager": prune_eager, "better": prune_better, "upcast": prune_upcast},
    "prune_topk_varlen": {"eager": varlen_eager, "better": varlen_better, "upcast": varlen_upcast},
    **{op: family.peers for op, family in families.OPS.items()},
}
FLOORS = ("matmul", "copy")
COMPILED = "compiled "


def names(op: str, dtype: torch.dtype) -> list[str]:
    """Every peer of an op, the floors last."""
    eager = [n for n in EAGER[op] if n != "upcast" or dtype != torch.float32]
    floors = FLOORS if op in ("prototype_scores", "prune_topk", "prune_topk_varlen") else ("copy",)
    compiles = op not in families.OPS or families.OPS[op].compiles
    return [*eager, *(COMPILED + n for n in eager if compiles), *floors]


def build(case: Case, name: str) -> Runner:
    """A peer as a function of a call. `torch.compile` happens on its first run."""
    if name == "matmul":
        return lambda call: call.args[0] @ call.args[1].T
    if name == "copy":
        return lambda call: _copy(call, case.counts().bytes)
    function = EAGER[case.op][name.removeprefix(COMPILED)]
    if name.startswith(COMPILED):
        # fullgraph: with a graph break or a spent recompile limit the peer would silently run as plain eager.
        function = torch.compile(function, dynamic=False, fullgraph=True)
    return lambda call: function(*call.peer_args)


def _copy(call: Call, total: int) -> Tensor:
    """Half of `total` bytes read, half written, in buffers that belong to the call."""
    if "copy" not in call.scratch:
        device = next(t for a in call.args for t in (a if isinstance(a, list) else [a])).device
        call.scratch["copy"] = torch.ones(2, max(1, total // 2), dtype=torch.uint8, device=device)
    source, target = call.scratch["copy"]
    return target.copy_(source)
