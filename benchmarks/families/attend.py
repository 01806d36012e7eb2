"""Attention inside cells, and to the one best key, by library attention and products."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vtkernels.testing import rand

from ..call import Call
from ..case import Case, Counts
from .family import Family

F32, BF16 = torch.float32, torch.bfloat16
_BOTH = ("cpu", "gpu")


def _cells(t: Tensor, grid_width: int, cell: int) -> Tensor:
    """[B, H, cells, cell * cell, d], a copy."""
    batch, heads, n, d = t.shape
    columns = grid_width // cell
    grid = t.view(batch, heads, n // grid_width // cell, cell, columns, cell, d)
    return grid.transpose(3, 4).reshape(batch, heads, -1, cell * cell, d)


def cells_library(query: Tensor, key: Tensor, value: Tensor, grid_width: int, cell: int) -> Tensor:
    """torch's attention with one query per cell, on permuted copies of keys and values."""
    out = F.scaled_dot_product_attention(query[..., None, :], _cells(key, grid_width, cell),
                                         _cells(value, grid_width, cell))
    return out[..., 0, :]


def cells_elementwise(query: Tensor, key: Tensor, value: Tensor, grid_width: int, cell: int) -> Tensor:
    logits = (_cells(key, grid_width, cell) * query[..., None, :]).sum(-1) * query.shape[-1] ** -0.5
    return (logits.softmax(-1)[..., None] * _cells(value, grid_width, cell)).sum(-2)


def argmax_eager(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    index = (query @ key.mT).argmax(-1)
    return key.gather(2, index[..., None].expand(-1, -1, -1, key.shape[-1])), index


def _make_cells(case: Case, device: torch.device) -> Call:
    side, cell = round(case.N ** 0.5), case.K
    query = rand(case.B, case.H, case.N // cell ** 2, case.d, dtype=case.dtype).to(device)
    key, value = (rand(case.B, case.H, case.N, case.d, dtype=case.dtype, seed=s).to(device) for s in (1, 2))
    args = (query, key, value, side, cell)
    return Call(args, {}, args, "generated")


def _make_argmax(case: Case, device: torch.device) -> Call:
    args = (rand(case.B, case.H, case.Tq, case.d, dtype=case.dtype).to(device),
            rand(case.B, case.H, case.N, case.d, dtype=case.dtype, seed=1).to(device))
    return Call(args, {}, args, "generated")


def _cell_counts(c: Case) -> Counts:
    size = c.B * c.H * c.d * c.dtype.itemsize
    return Counts(size * (2 * c.N + 2 * c.N // c.K ** 2), 4 * c.B * c.H * c.N * c.d)


def _argmax_counts(c: Case) -> Counts:
    rows = c.B * c.H * c.Tq
    return Counts(c.B * c.H * (c.N + 2 * c.Tq) * c.d * c.dtype.itemsize + 8 * rows, 2 * rows * c.N * c.d)


def _allowed(case: Case) -> float:
    return 1e-5 if case.dtype == F32 else 3e-2


def _check_cells(case: Case, call: Call, outputs: Tensor) -> None:
    query, key, value, side, cell = call.args
    gold = cells_elementwise(query.double(), key.double(), value.double(), side, cell)
    assert outputs.shape == gold.shape
    assert float((outputs - gold).abs().max()) <= _allowed(case) * float(gold.abs().max()), "not those of float64"


def _check_argmax(case: Case, call: Call, outputs: tuple) -> None:
    query, key = call.args
    out, index = outputs
    assert bool(((index >= 0) & (index < case.N)).all()), "a key that does not exist"
    assert torch.equal(out, key.gather(2, index[..., None].expand(-1, -1, -1, case.d))), "not the rows of the indices"
    products = query.double() @ key.double().mT
    gap = products.amax(-1) - products.gather(-1, index[..., None])[..., 0]
    assert float(gap.max()) <= _allowed(case) * float(products.abs().max()), "a better key exists"


def _peer_cells(case: Case, call: Call, theirs: Tensor, ours: Tensor) -> None:
    _check_cells(case, call, theirs)


def _peer_argmax(case: Case, call: Call, theirs: tuple, ours: tuple) -> None:
    _check_argmax(case, call, theirs)


OPS = {
    "cell_attention": Family(
        (Case("cell_attention", "8-crops-576-s2-H8", F32, _BOTH, B=8, N=576, H=8, d=128, K=2),
         Case("cell_attention", "8-crops-576-s2-H8", BF16, _BOTH, B=8, N=576, H=8, d=128, K=2),
         Case("cell_attention", "tiny", F32, ("quick",), B=2, N=16, H=2, d=8, K=2)),
        _cell_counts, _make_cells, {"eager": cells_elementwise, "better": cells_library}, _check_cells, _peer_cells),
    "argmax_attention": Family(
        (Case("argmax_attention", "Q100-8192-H8-d32", F32, _BOTH, N=8192, H=8, d=32, Tq=100),
         Case("argmax_attention", "tiny", F32, ("quick",), B=2, N=16, H=2, d=8, Tq=5)),
        _argmax_counts, _make_argmax, {"eager": argmax_eager}, _check_argmax, _peer_argmax),
}
