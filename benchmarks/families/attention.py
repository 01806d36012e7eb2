"""Attention received by keys: peers that store the matrix, packed by key head or with repeated keys."""


import torch
from torch import Tensor

from vtkernels.testing import rand

from ..call import Call
from ..case import Case, Counts
from .family import Family

F32, BF16 = torch.float32, torch.bfloat16


def eager(query: Tensor, key: Tensor) -> Tensor:
    """As methods write it: keys repeated for each query head, the whole matrix, then the means."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    weights = torch.softmax(query @ key.mT * query.shape[-1] ** -0.5, -1, dtype=torch.float32)
    return weights.mean((1, 2))


def packed(query: Tensor, key: Tensor) -> Tensor:
    """All query heads of a key head in one product."""
    batch, heads, rows, width = query.shape
    groups = query.reshape(batch, key.shape[1], heads // key.shape[1] * rows, width)
    return torch.softmax(groups @ key.mT * width ** -0.5, -1, dtype=torch.float32).mean((1, 2))


def _make(case: Case, device: torch.device) -> Call:
    query = rand(case.B, case.H, case.Tq, case.d, dtype=case.dtype).to(device)
    key = rand(case.B, case.Hkv, case.N, case.d, dtype=case.dtype, seed=1).to(device)
    return Call((query, key), {}, (query, key), "generated")


def _counts(c: Case) -> Counts:
    """Queries and keys in, a score per key out; products once, or twice where the sums of rows are not given."""
    read = c.B * (c.H * c.Tq + c.Hkv * c.N) * c.d * c.dtype.itemsize
    return Counts(read + 4 * c.B * c.N, 2 * 2 * c.B * c.H * c.Tq * c.N * c.d)


def _oracle(query: Tensor, key: Tensor) -> Tensor:
    group = query.shape[1] // key.shape[1]
    total = torch.zeros(key.shape[0], key.shape[2], dtype=torch.float64, device=key.device)
    for head in range(query.shape[1]):
        logits = query[:, head].double() @ key[:, head // group].double().mT * query.shape[-1] ** -0.5
        total += logits.softmax(-1).mean(1)
    return total / query.shape[1]


def _check(case: Case, call: Call, outputs: Tensor) -> None:
    gold = _oracle(*call.args)
    assert outputs.shape == gold.shape
    assert float((outputs - gold).abs().max()) <= 1e-4 * float(gold.max()), "the scores are not those of float64"


def _check_peer(case: Case, call: Call, theirs: Tensor, ours: Tensor) -> None:
    allowed = 1e-4 if case.dtype == F32 else 3e-2  # the peer rounds its logits to the dtype
    assert theirs.shape == ours.shape
    assert bool(((theirs - ours).abs() <= allowed * ours.abs().max()).all()), "the scores differ"


def _packed_sequences(case: Case, device: torch.device) -> Call:
    rows = rand(len(case.lengths) * case.Tq, case.H, case.d, dtype=case.dtype).to(device)
    keys = rand(sum(case.lengths), case.Hkv, case.d, dtype=case.dtype, seed=1).to(device)
    cu_q = torch.arange(len(case.lengths) + 1, dtype=torch.int32, device=device) * case.Tq
    cu_k = torch.tensor([0, *case.lengths]).cumsum(0).to(torch.int32).to(device)
    args = (rows, keys, cu_q, cu_k, sum(case.lengths), case.Tq, max(case.lengths))
    return Call(args, {}, (rows, keys, case.Tq, case.lengths), "generated")


def varlen_eager(query: Tensor, key: Tensor, rows: int, lengths: tuple[int, ...]) -> Tensor:
    """One sequence after the other."""
    out, first = [], 0
    for i, length in enumerate(lengths):
        q = query[i * rows:(i + 1) * rows].transpose(0, 1)[None]
        out.append(packed(q, key[first:first + length].transpose(0, 1)[None])[0])
        first += length
    return torch.cat(out)


def _varlen_counts(c: Case) -> Counts:
    tokens, sequences = sum(c.lengths), len(c.lengths)
    read = (sequences * c.Tq * c.H + tokens * c.Hkv) * c.d * c.dtype.itemsize + 8 * (sequences + 1)
    return Counts(read + 4 * tokens, 2 * 2 * c.H * c.Tq * tokens * c.d)


def _check_varlen(case: Case, call: Call, outputs: Tensor) -> None:
    query, key, rows, lengths = call.peer_args
    gold = varlen_eager(query.double(), key.double(), rows, lengths)
    assert outputs.shape == gold.shape
    assert float((outputs - gold).abs().max()) <= 1e-4 * float(gold.max()), "the scores are not those of float64"


_BOTH = ("cpu", "gpu")
_LENGTHS = (576, 1024, 196, 2880, 64, 1500, 729, 1)

OPS = {
    "attention_scores": Family(
        (Case("attention_scores", "Tq64-16384-H28/4", F32, _BOTH, N=16384, H=28, Hkv=4, d=128, Tq=64),
         Case("attention_scores", "Tq64-16384-H28/4", BF16, _BOTH, N=16384, H=28, Hkv=4, d=128, Tq=64),
         Case("attention_scores", "Tq1-576-H32/32", F32, _BOTH, N=576, H=32, Hkv=32, d=128, Tq=1),
         Case("attention_scores", "tiny", F32, ("quick",), B=2, N=40, H=4, Hkv=2, d=8, Tq=3)),
        _counts, _make, {"eager": eager, "packed": packed}, _check, _check_peer),
    "attention_scores_varlen": Family(
        (Case("attention_scores_varlen", "8-sequences-Tq32-H28/4", F32, _BOTH, H=28, Hkv=4, d=128, Tq=32,
              lengths=_LENGTHS),
         Case("attention_scores_varlen", "tiny", F32, ("quick",), H=4, Hkv=2, d=8, Tq=3, lengths=(20, 1, 15))),
        _varlen_counts, _packed_sequences, {"eager": varlen_eager}, _check_varlen, _check_peer),
}
