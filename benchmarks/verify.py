"""The checks that stand before every speed: ours against the oracles, a peer against ours.

Scores are judged against float64, a selection exactly by the scores that came out with it, and moved rows byte by
byte. None of it calls a backend, so a wrong one cannot agree with itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtkernels.testing import assert_scores, oracle_topk

from . import families
from .call import Call
from .case import Case

MAX_SCORED = 2048  # tokens whose scores are judged in float64


class Mismatch(AssertionError):
    """An output that is not what the op promises."""


def check(case: Case, call: Call, outputs: Any) -> None:
    """Raise `Mismatch` unless `outputs` are right for the call."""
    _judge(_OURS | {op: f.check for op, f in families.OPS.items()}, case, call, outputs)


def check_peer(case: Case, call: Call, theirs: Any, ours: Any) -> None:
    """Raise `Mismatch` unless a peer computes the same as ours, which has passed `check`.

    Its scores may differ from ours by the rounding of its dtype. Its selection must be exact by its own scores (ties
    may fall either way), and ascending. Its rows must be those of its own indices, byte for byte.
    """
    _judge(_PEERS | {op: f.check_peer for op, f in families.OPS.items()}, case, call, theirs, ours)


def _judge(checks: dict[str, Callable[..., None]], case: Case, call: Call, *outputs: Any) -> None:
    try:
        checks[case.op](case, call, *outputs)
    except AssertionError as error:
        raise Mismatch(f"{case.op} {case.name}: {str(error).strip()}") from error


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise Mismatch(message)


def _check_rows(pairs: Sequence[tuple[Tensor, Tensor, int]], indices: Tensor) -> None:
    """(input, output, token dimension) of tensors whose tokens `indices` [B, k] were moved. Batch comes first, or, in
    position ids [3, B, N], right before the tokens."""
    batch = torch.arange(len(indices), device=indices.device)[:, None]
    for i, (source, got, dim) in enumerate(pairs):
        batch_dim = 1 if dim == 2 and source.dim() == 3 else 0
        moved = source.movedim((batch_dim, dim), (0, 1))[batch, indices].movedim((0, 1), (batch_dim, dim))
        _require(got.shape == moved.shape and got.dtype == source.dtype,
                 f"tensor {i} is {tuple(got.shape)} {got.dtype}, expected {tuple(moved.shape)} {source.dtype}")
        same = torch.equal(got.contiguous().view(torch.uint8), moved.contiguous().view(torch.uint8))
        _require(same, f"tensor {i} does not hold the rows of its indices")


def _check_scores(scores: Tensor, tokens: Tensor, prototypes: Tensor, argmax: Tensor | None = None) -> None:
    """`assert_scores` on all tokens, or on a spread of them that has the first and the last."""
    _require(scores.shape == tokens.shape[:-1], f"scores are {tuple(scores.shape)} for tokens {tuple(tokens.shape)}")
    scores, tokens = scores.reshape(-1), tokens.reshape(-1, tokens.shape[-1])
    pick = torch.linspace(0, len(tokens) - 1, min(len(tokens), MAX_SCORED)).round().long().to(tokens.device)
    assert_scores(scores[pick], tokens[pick], prototypes, argmax=None if argmax is None else argmax.reshape(-1)[pick])


def _segments(lengths: Sequence[int], ks: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first token, tokens, kept) of each packed sequence."""
    return [(sum(lengths[:i]), n, k) for i, (n, k) in enumerate(zip(lengths, ks, strict=True))]


def _varlen_rows(call: Call, outputs: Any) -> None:
    hidden, *_, kv = call.peer_args
    out, out_kv, indices = outputs[:3]
    _require(len(out_kv) == len(kv), f"{len(out_kv)} caches out for {len(kv)} in")
    _check_rows([(hidden[None], out[None], 1), *((t[None], o[None], 2) for t, o in zip(kv, out_kv, strict=True))],
                indices[None])


def _prune_rows(call: Call, outputs: Any) -> None:
    hidden, _, _, kv = call.args
    out, out_kv, indices = outputs[:3]
    _require(len(out_kv) == len(kv), f"{len(out_kv)} caches out for {len(kv)} in")
    _check_rows([(hidden, out, 1), *((t, o, 2) for t, o in zip(kv, out_kv, strict=True))], indices)


def _ours_scores(case: Case, call: Call, outputs: Any) -> None:
    tokens, prototypes = call.args
    _check_scores(outputs[0], tokens, prototypes, outputs[1])


def _ours_select(case: Case, call: Call, outputs: Any) -> None:
    _require(outputs.tolist() == oracle_topk(call.args[0], case.k, False), "the indices are not the k lowest scores")


def _gather_tokens(case: Case, call: Call, outputs: Any, *_: Any) -> None:
    tensors, indices, dims = call.peer_args
    _check_rows(list(zip(tensors, outputs, dims, strict=True)), indices)


def _gather_kv(case: Case, call: Call, outputs: Any, *_: Any) -> None:
    kv, indices = call.args
    _require(len(outputs) == len(kv), f"{len(outputs)} caches out for {len(kv)} in")
    _check_rows([(t, o, 2) for t, o in zip(kv, outputs, strict=True)], indices)


def _ours_prune(case: Case, call: Call, outputs: Any) -> None:
    _, _, indices, scores = outputs
    _check_scores(scores, *call.args[:2])
    _require(indices.tolist() == oracle_topk(scores, case.k, False), "the indices are not the k lowest scores")
    _prune_rows(call, outputs)


def _ours_varlen(case: Case, call: Call, outputs: Any) -> None:
    _, _, indices, scores, cu_seqlens = outputs
    _check_scores(scores, *call.args[:2])
    kept, bounds = [], [0]
    for begin, n, k in _segments(case.lengths, case.ks):
        kept += [begin + i for i in oracle_topk(scores[None, begin:begin + n], k, False)[0]]
        bounds.append(len(kept))
    _require(indices.tolist() == kept, "the indices are not the k lowest scores of each sequence")
    _require(cu_seqlens.tolist() == bounds, f"cu_seqlens is {cu_seqlens.tolist()}, expected {bounds}")
    _varlen_rows(call, outputs)


def _close_scores(case: Case, theirs: Tensor, ours: Tensor) -> None:
    """float32 sums in another order; in lower precision four roundings (norm, quotient, product, norm) of the score,
    and the rounded entries of both vectors, whose errors average out over the width."""
    _require(theirs.shape == ours.shape, f"scores are {tuple(theirs.shape)}, expected {tuple(ours.shape)}")
    if case.dtype == torch.float32:
        allowed = torch.full_like(ours, 8 * torch.finfo(case.dtype).eps * max(1.0, case.D ** 0.5 / 8))
    else:
        unit = torch.finfo(case.dtype).eps / 2
        allowed = unit * (4 * ours.abs() + 16 / case.D ** 0.5)
    over = ((theirs.float() - ours).abs() - allowed).max()
    _require(bool(over <= 0), f"scores differ by {float(over):.3g} more than rounding explains")  # NaN does not pass


def _exact_selection(scores: Tensor, kept: Tensor, k: int) -> None:
    """One row: k ascending positions, and nothing left out scores lower than what is kept."""
    _require(kept.dtype == torch.int64 and len(kept) == k, f"{len(kept)} indices of {kept.dtype}, expected {k} int64")
    _require(bool((kept.diff() > 0).all()), "the indices do not ascend")
    _require(k == 0 or bool((kept[0] >= 0) & (kept[-1] < len(scores))), "an index is outside its row")
    left = torch.ones_like(scores, dtype=torch.bool).index_fill_(0, kept, False)
    _require(k in (0, len(scores)) or bool(scores[kept].max() <= scores[left].min()), "a lower score was left out")


def _peer_scores(case: Case, call: Call, theirs: Any, ours: Any) -> None:
    _close_scores(case, theirs[0], ours[0])
    tokens, prototypes = call.args
    tokens = tokens.reshape(-1, case.D)
    attained = (F.normalize(tokens.double(), dim=-1) * F.normalize(prototypes.double(), dim=-1)[theirs[1].reshape(-1)])
    _close_scores(case, attained.sum(-1), ours[0].reshape(-1).double())


def _peer_select(case: Case, call: Call, theirs: Any, ours: Any) -> None:
    for scores, kept in zip(call.args[0], theirs, strict=True):
        _exact_selection(scores, kept, case.k)


def _peer_prune(case: Case, call: Call, theirs: Any, ours: Any) -> None:
    _close_scores(case, theirs[3], ours[3])
    for scores, kept in zip(theirs[3], theirs[2], strict=True):
        _exact_selection(scores, kept, case.k)
    _prune_rows(call, theirs)


def _peer_varlen(case: Case, call: Call, theirs: Any, ours: Any) -> None:
    _close_scores(case, theirs[3], ours[3])
    segments = _segments(case.lengths, case.ks)
    for (begin, n, k), kept in zip(segments, theirs[2].split(case.ks), strict=True):
        _exact_selection(theirs[3][begin:begin + n], kept - begin, k)
    _require(torch.equal(theirs[4], ours[4]), "cu_seqlens differ")
    _varlen_rows(call, theirs)


_OURS: dict[str, Callable[..., None]] = {
    "prototype_scores": _ours_scores, "select_topk": _ours_select, "gather_tokens": _gather_tokens,
    "gather_kv": _gather_kv, "prune_topk": _ours_prune, "prune_topk_varlen": _ours_varlen,
}
_PEERS: dict[str, Callable[..., None]] = {
    "prototype_scores": _peer_scores, "select_topk": _peer_select, "gather_tokens": _gather_tokens,
    "gather_kv": _gather_kv, "prune_topk": _peer_prune, "prune_topk_varlen": _peer_varlen,
}
