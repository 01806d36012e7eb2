"""Greedy diverse subsets: the published loop, a minimum over all picked rows at each step, and a better one."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vtkernels.testing import clustered

from ..call import Call
from ..case import Case, Counts
from .family import Family

F32 = torch.float32
_BOTH = ("cpu", "gpu")


def _similarity(features: Tensor) -> Tensor:
    unit = F.normalize(features, dim=-1)
    return unit @ unit.mT


def max_min_usual(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The distances of all picked rows are gathered again at each step: O(k^2 N)."""
    distance = 1 - _similarity(features)
    rows = []
    for d in distance:
        picked = torch.topk(d, 2, dim=0, largest=False).values[1].argmax()[None]
        for _ in range(k - 1):
            nearest = d.index_select(0, picked).amin(0)
            nearest[picked] = -1
            picked = torch.cat([picked, nearest.argmax()[None]])
        rows.append(picked)
    order = torch.stack(rows)
    return order, order.sort(-1).values


def max_min_running(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """One running minimum: O(k N)."""
    distance = 1 - _similarity(features)
    rows = []
    for d in distance:
        pick = torch.topk(d, 2, dim=0, largest=False).values[1].argmax()
        picked, nearest = [pick], d[pick].clone()
        for _ in range(k - 1):
            nearest[pick] = -1
            pick = nearest.argmax()
            picked.append(pick)
            torch.minimum(nearest, d[pick], out=nearest)
            nearest[torch.stack(picked)] = -1
        rows.append(torch.stack(picked))
    order = torch.stack(rows)
    return order, order.sort(-1).values


def dpp_usual(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Greedy MAP with an incremental Cholesky factor."""
    kernel = _similarity(features)
    batch, n = kernel.shape[:2]
    factor = kernel.new_zeros(k, batch, n)
    gain = kernel.diagonal(dim1=1, dim2=2).clone()
    order, rows = [], torch.arange(batch)
    for i in range(k):
        pick = gain.argmax(-1)
        order.append(pick)
        row = kernel[rows, pick] - (factor[:i, rows, pick][:, :, None] * factor[:i]).sum(0)
        factor[i] = row / gain[rows, pick].sqrt()[:, None]
        gain -= factor[i].square()
        gain[rows, pick] = -torch.inf
    picked = torch.stack(order, 1)
    return picked, picked.sort(-1).values


PEERS = {"max_min": {"eager": max_min_usual, "better": max_min_running}, "dpp": {"eager": dpp_usual}}


def _by_objective(name: str) -> Callable:
    def run(features: Tensor, k: int, objective: str) -> tuple[Tensor, Tensor]:
        return PEERS[objective].get(name, PEERS[objective]["eager"])(features, k)

    return run


def _make(case: Case, device: torch.device) -> Call:
    features = clustered(case.B * case.N, case.D, centres=case.N // 8, seed=5).view(case.B, case.N, case.D)
    args = (features.to(case.dtype).to(device), case.k)
    return Call(args, {"objective": case.option}, (*args, case.option), "generated clusters")


def _counts(c: Case) -> Counts:
    """Features in, two lists of indices out; half of the products, a pass over the row per pick."""
    steps = c.k * c.N * (c.k if c.option == "dpp" else 2)
    return Counts(c.tokens * c.D * c.dtype.itemsize + 16 * c.kept, c.B * (c.N * c.N * c.D + steps))


def _check(case: Case, call: Call, outputs: tuple) -> None:
    """Each pick attains the maximum of its step within rounding, by similarities in float64."""
    order, indices = outputs
    features, k = call.args
    assert torch.equal(order.sort(-1).values, indices)
    assert all(len(set(row)) == k for row in order.tolist()), "a token was picked twice"
    for s, picks in zip(_similarity(features.double()), order, strict=True):
        if case.option == "max_min":
            value = torch.topk(1 - s, 2, dim=0, largest=False).values[1]
            nearest = 1 - s[picks[0]]
        else:
            value, factor = s.diagonal().clone(), s.new_zeros(k, len(s))
        for i, pick in enumerate(picks):
            assert float(value.max() - value[pick]) <= 1e-3, f"pick {i} is not the best"
            if case.option == "max_min":
                nearest = torch.minimum(nearest, 1 - s[pick])
                value = nearest.clone()
            else:
                factor[i] = (s[pick] - factor[:i, pick] @ factor[:i]) / value[pick].sqrt()
                value = value - factor[i].square()
            value[picks[:i + 1]] = -1


def _check_peer(case: Case, call: Call, theirs: tuple, ours: tuple) -> None:
    _check(case, call, theirs)


OPS = {
    "select_diverse": Family(
        (Case("select_diverse", "576-k64-D4096-max_min", F32, _BOTH, N=576, D=4096, keep=1 / 9, option="max_min"),
         Case("select_diverse", "2880-k320-D4096-max_min", F32, _BOTH, N=2880, D=4096, keep=1 / 9, option="max_min"),
         Case("select_diverse", "576-k64-D1024-dpp", F32, _BOTH, N=576, D=1024, keep=1 / 9, option="dpp"),
         Case("select_diverse", "tiny", F32, ("quick",), B=2, N=40, D=16, option="max_min")),
        _counts, _make, {"eager": _by_objective("eager"), "better": _by_objective("better")}, _check, _check_peer,
        compiles=False),  # a graph of hundreds of dependent steps takes minutes to compile
}
