"""The m nearest prototypes of each token, and the softmax variants of the redundancy score."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..call import Call
from ..case import Case, Counts
from ..features import features
from .family import Family

F32, BF16 = torch.float32, torch.bfloat16
_BOTH = ("cpu", "gpu")


def _cosines(tokens: Tensor, prototypes: Tensor) -> Tensor:
    return F.normalize(tokens, dim=-1) @ F.normalize(prototypes, dim=-1).T


def topm_eager(tokens: Tensor, prototypes: Tensor, m: int) -> tuple[Tensor, Tensor]:
    best = _cosines(tokens, prototypes).topk(m, -1)
    return best.values, best.indices


def topm_better(tokens: Tensor, prototypes: Tensor, m: int) -> tuple[Tensor, Tensor]:
    best = (tokens @ F.normalize(prototypes, dim=-1).T).topk(m, -1)
    return best.values / torch.linalg.vector_norm(tokens, dim=-1, keepdim=True), best.indices


def softmax_eager(tokens: Tensor, prototypes: Tensor, over_tokens: bool) -> Tensor:
    similarity = _cosines(tokens, prototypes).float()
    weight = similarity.softmax(-1)
    if over_tokens:
        weight = weight * similarity.softmax(-2)
    return weight.amax(-1)


def _topm(case: Case, device: torch.device) -> Call:
    tokens, prototypes, source = features(case)
    args = (tokens.view(case.B, case.N, case.D).to(device), prototypes.to(device), case.K)
    return Call(args, {}, args, source)


def _softmax(case: Case, device: torch.device) -> Call:
    tokens, prototypes, source = features(case)
    args = (tokens.view(case.B, case.N, case.D).to(device), prototypes.to(device))
    over_tokens = case.option == "over_tokens"
    return Call(args, {"over_tokens": over_tokens}, (*args, over_tokens), source)


def _products(c: Case, out: int, passes: int) -> Counts:
    read = (c.tokens + c.P) * c.D * c.dtype.itemsize
    return Counts(read + out * c.tokens, passes * 2 * c.tokens * c.P * c.D + 2 * (c.tokens + c.P) * c.D)


def _check_topm(case: Case, call: Call, outputs: tuple) -> None:
    scores, indices = outputs
    gold = _cosines(*(t.double() for t in call.args[:2]))
    assert scores.shape == indices.shape == (case.B, case.N, case.K)
    assert bool((scores.diff(dim=-1) <= 0).all()), "not best first"
    assert bool(((indices >= 0) & (indices < case.P)).all()), "a prototype that does not exist"
    assert float((gold.gather(-1, indices) - scores).abs().max()) <= 1e-4, "not the scores of the indices"
    assert float((gold.topk(case.K, -1).values - scores).abs().max()) <= 1e-4, "not the best"


def _check_softmax(case: Case, call: Call, outputs: Tensor) -> None:
    tokens, prototypes = (t.double() for t in call.args)
    gold = softmax_eager(tokens, prototypes, call.kwargs["over_tokens"])
    assert float(((outputs - gold) / gold).abs().max()) <= 1e-4, "not the weights of float64"


def _allowed(case: Case) -> float:
    return 1e-4 if case.dtype == F32 else 3e-2


def _peer_topm(case: Case, call: Call, theirs: tuple, ours: tuple) -> None:
    assert float((theirs[0] - ours[0]).abs().max()) <= _allowed(case), "the scores differ"


def _peer_softmax(case: Case, call: Call, theirs: Tensor, ours: Tensor) -> None:
    assert float(((theirs - ours) / ours).abs().max()) <= _allowed(case), "the weights differ"


OPS = {
    "prototype_topm": Family(
        (Case("prototype_topm", "4096x3584-P64-m8", F32, _BOTH, N=4096, D=3584, P=64, K=8),
         Case("prototype_topm", "tiny", F32, ("quick",), B=2, N=40, D=32, P=5, K=2)),
        lambda c: _products(c, 12 * c.K, 1), _topm, {"eager": topm_eager, "better": topm_better}, _check_topm,
        _peer_topm),
    "prototype_softmax_scores": Family(
        (Case("prototype_softmax_scores", "16x196x3584-P45", F32, _BOTH, B=16, N=196, D=3584, P=45),
         Case("prototype_softmax_scores", "16x196x3584-P45-over-tokens", F32, _BOTH, B=16, N=196, D=3584, P=45,
              option="over_tokens"),
         Case("prototype_softmax_scores", "tiny", F32, ("quick",), B=2, N=40, D=32, P=5, option="over_tokens")),
        lambda c: _products(c, 4, 2 if c.option else 1), _softmax, {"eager": softmax_eager}, _check_softmax,
        _peer_softmax),
}
