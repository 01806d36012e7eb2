"""Dense caches: compaction in place, and the rotation of keys to new positions.

In place, every run works on caches in the state that the run before left; the work is the same. A check compares with
copies of the caches, and restores them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vtkernels.testing import rand

from ..call import Call
from ..case import Case, Counts
from .family import Family

F32, BF16 = torch.float32, torch.bfloat16
_BOTH = ("cpu", "gpu")


def inplace_usual(kv: Sequence[Tensor], indices: Tensor) -> None:
    """The kept rows copied out, then back to the front."""
    k = indices.shape[1]
    for t in kv:
        t[:, :, :k] = t.gather(2, indices[:, None, :, None].expand(-1, t.shape[1], -1, t.shape[3]))


def rotate_usual(keys: Tensor, deltas: Tensor, inv_freq: Tensor) -> Tensor:
    """cos, sin and rotate_half, as models apply them."""
    angles = deltas[..., None] * inv_freq
    cos, sin = (torch.cat([f(angles)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))
    x = keys.to(angles.dtype)
    low, high = x.chunk(2, -1)
    return (x * cos + torch.cat([-high, low], -1) * sin).to(keys.dtype)


def _kept(case: Case, device: torch.device) -> Tensor:
    order = torch.rand(case.B, case.N, generator=torch.Generator().manual_seed(10)).argsort(-1)
    return order[:, :case.k].sort(-1).values.to(device)


def _inplace(case: Case, device: torch.device) -> Call:
    kv = [rand(case.B, case.H, case.N, case.d, dtype=case.dtype, seed=s).to(device) for s in range(2 * case.layers)]
    call = Call((kv, _kept(case, device)), {}, (kv, _kept(case, device)), "generated")
    call.scratch |= {f"cache {i}": t.clone() for i, t in enumerate(kv)}
    return call


def _rotate(case: Case, device: torch.device) -> Call:
    kept = _kept(case, device)
    keys = rand(case.B, case.H, case.k, case.d, dtype=case.dtype).to(device)
    inv_freq = (10000.0 ** -(torch.arange(0, case.d, 2) / case.d)).to(device)
    args = (keys, torch.arange(case.k, device=device) - kept, inv_freq)
    return Call(args, {}, args, "generated")


def _inplace_counts(c: Case) -> Counts:
    return Counts(2 * c.layers * 2 * c.kept * c.H * c.d * c.dtype.itemsize + 8 * c.kept, 0)


def _rotate_counts(c: Case) -> Counts:
    return Counts(2 * c.kept * c.H * c.d * c.dtype.itemsize + 8 * c.kept, 3 * c.kept * c.H * c.d)


def _check_inplace(case: Case, call: Call, outputs: object) -> None:
    kv, indices = call.args
    assert outputs is None, "outputs of an op that has none"
    index = indices[:, None, :, None].expand(-1, case.H, -1, case.d)
    for i, t in enumerate(kv):
        before = call.scratch[f"cache {i}"]
        wrong = not torch.equal(t[:, :, :case.k], before.gather(2, index))
        wrong |= not torch.equal(t[:, :, case.k:], before[:, :, case.k:])
        t.copy_(before)
        assert not wrong, f"cache {i} does not hold the rows of the indices at its front, and its own behind"


def _check_rotate(case: Case, call: Call, outputs: Tensor) -> None:
    keys, deltas, inv_freq = call.args
    gold = rotate_usual(keys.double(), deltas.double(), inv_freq.double())
    assert outputs.shape == gold.shape
    assert outputs.dtype == keys.dtype
    # The usual code takes its angles in float32: at thousands of positions that is 1e-4 of a radian.
    assert float((outputs - gold).abs().max()) <= (2e-3 if case.dtype == F32 else 4e-2), "not rotated so far"


def _peer_inplace(case: Case, call: Call, theirs: object, ours: object) -> None:
    _check_inplace(case, call, theirs)


def _peer_rotate(case: Case, call: Call, theirs: Tensor, ours: Tensor) -> None:
    _check_rotate(case, call, theirs)


OPS = {
    "gather_kv_inplace": Family(
        (Case("gather_kv_inplace", "16-layers-2880-H8", BF16, _BOTH, N=2880, H=8, d=128, layers=16, keep=0.25),
         Case("gather_kv_inplace", "tiny", F32, ("quick",), B=2, N=40, H=2, d=8, layers=1)),
        _inplace_counts, _inplace, {"eager": inplace_usual}, _check_inplace, _peer_inplace, compiles=False),
    "rotate_keys": Family(
        (Case("rotate_keys", "2880-keep-25-H8", BF16, _BOTH, N=2880, H=8, d=128, keep=0.25),
         Case("rotate_keys", "tiny", F32, ("quick",), B=2, N=40, H=2, d=8)),
        _rotate_counts, _rotate, {"eager": rotate_usual}, _check_rotate, _peer_rotate),
}
