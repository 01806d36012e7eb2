"""Compaction of paged caches, as engines write it: slots from the block table, then an index copy per tensor.

In place, every run works on pools in the state that the run before left, which changes nothing about the work: what
moves is a matter of the metadata alone. A check compares with copies of the pools, and restores them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vtkernels.testing import oracle_topk

from ..call import Call
from ..case import Case, Counts
from ..features import features
from .family import Family

F32, BF16 = torch.float32, torch.bfloat16
_BOTH = ("cpu", "gpu")
BLOCK = 16  # tokens of a page
LENGTHS = (576, 1024, 196, 2880, 64, 1500, 729, 1)


def slots_of(table: Tensor, positions: Tensor) -> Tensor:
    """Slots of positions [B, k] in the pages of their row."""
    return table.long().gather(1, positions // BLOCK) * BLOCK + positions % BLOCK


def _free_pages(table: Tensor, unused: Tensor, live: Tensor) -> Tensor:
    """Pages number `unused` .. `live` of each row, -1 padded."""
    at = torch.arange(table.shape[1], device=table.device) + unused[:, None]
    pages = table.gather(1, at.clamp(max=table.shape[1] - 1))
    return torch.where(at < live[:, None], pages, -1)


def compact_usual(kv: Sequence[Tensor], table: Tensor, target: Tensor, indices: Tensor,
                  in_place: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Advanced indexing: reads a copy of the kept rows, writes them to their new slots."""
    source, slots = slots_of(table, indices), _new_slots(target, indices)
    for t in kv:
        flat = t.view(-1, *t.shape[2:])
        flat[slots.flatten()] = flat[source.flatten()]
    return _metadata(table, indices, slots, in_place)


def compact_better(kv: Sequence[Tensor], table: Tensor, target: Tensor, indices: Tensor,
                   in_place: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Whole rows by `index_select` and `index_copy_`."""
    source, slots = slots_of(table, indices), _new_slots(target, indices)
    for t in kv:
        flat = t.view(-1, *t.shape[2:])
        flat.index_copy_(0, slots.flatten(), flat.index_select(0, source.flatten()))
    return _metadata(table, indices, slots, in_place)


def _new_slots(target: Tensor, indices: Tensor) -> Tensor:
    return slots_of(target, torch.arange(indices.shape[1], device=indices.device).expand_as(indices))


def _metadata(table: Tensor, indices: Tensor, slots: Tensor, in_place: bool) -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.full((len(indices),), indices.shape[1], dtype=torch.int32, device=table.device)
    unused = (lengths + BLOCK - 1) // BLOCK if in_place else torch.zeros_like(lengths)
    return lengths, slots, _free_pages(table, unused, torch.full_like(lengths, table.shape[1]))


def prune_usual(hidden: Tensor, prototypes: Tensor, lengths: Sequence[int], ks: Sequence[int], kv: Sequence[Tensor],
                table: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """One product for all sequences, a selection and an index copy for each."""
    scores = (hidden @ F.normalize(prototypes, dim=-1).T).amax(-1) / torch.linalg.vector_norm(hidden, dim=-1)
    kept, slots, begin = [], [], 0
    for b, (n, k) in enumerate(zip(lengths, ks, strict=True)):
        chosen = scores[begin:begin + n].topk(k, largest=False, sorted=False).indices.sort().values
        source = slots_of(table[b:b + 1], chosen[None])[0]
        slots.append(_new_slots(target[b:b + 1], chosen[None])[0])
        for t in kv:
            flat = t.view(-1, *t.shape[2:])
            flat.index_copy_(0, slots[-1], flat.index_select(0, source))
        kept.append(begin + chosen)
        begin += n
    indices = torch.cat(kept)
    held, counts = (torch.tensor(v, dtype=torch.int32, device=table.device) for v in (lengths, ks))
    freed = _free_pages(table, torch.zeros_like(held), (held + BLOCK - 1) // BLOCK)
    cu_seqlens = F.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    return hidden.index_select(0, indices), indices, scores.float(), cu_seqlens, counts, torch.cat(slots), freed


def _pools(case: Case, blocks: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(9)
    return [torch.randn(blocks, BLOCK, case.H, case.d, generator=generator, dtype=case.dtype, device=device)
            for _ in range(2 * case.layers)]


def _keep_copies(call: Call, kv: Sequence[Tensor]) -> Call:
    call.scratch.update({f"pool {i}": t.clone() for i, t in enumerate(kv)})
    return call


def _compact(case: Case, device: torch.device) -> Call:
    """Pages in random order, with as many free ones between them."""
    pages = -(-case.N // BLOCK)
    fresh = -(-case.k // BLOCK)
    order = torch.randperm(2 * case.B * pages, generator=torch.Generator().manual_seed(3)).to(torch.int32).to(device)
    table, target = order[:case.B * pages].view(case.B, -1), order[case.B * pages:][:case.B * fresh].view(case.B, -1)
    pick = torch.rand(case.B, case.N, generator=torch.Generator().manual_seed(10)).argsort(-1)[:, :case.k]
    indices, lengths = pick.sort(-1).values.to(device), torch.full((case.B,), case.N, dtype=torch.int32, device=device)
    kv, in_place = _pools(case, 2 * case.B * pages, device), case.option == "in place"
    kwargs = {} if in_place else {"dst_block_table": target}
    call = Call((kv, table, lengths, indices), kwargs, (kv, table, table if in_place else target, indices, in_place),
                "generated")
    return _keep_copies(call, kv)


def _prune(case: Case, device: torch.device) -> Call:
    tokens, prototypes, source = features(case)
    width = -(-max(case.lengths) // BLOCK)
    order = torch.randperm(2 * len(case.lengths) * width, generator=torch.Generator().manual_seed(3))
    table, target = order.to(torch.int32).view(2, -1, width).to(device)
    lengths, ks = (torch.tensor(v, dtype=torch.int32, device=device) for v in (case.lengths, case.ks))
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    hidden, prototypes, kv = tokens.to(device), prototypes.to(device), _pools(case, len(order), device)
    call = Call((hidden, prototypes, cu_seqlens, ks, case.kept, kv, table, lengths), {"dst_block_table": target},
                (hidden, prototypes, case.lengths, case.ks, kv, table, target), source)
    return _keep_copies(call, kv)


def _moved_bytes(c: Case) -> int:
    return 2 * 2 * c.layers * c.kept * c.H * c.d * c.dtype.itemsize


def _compact_counts(c: Case) -> Counts:
    """Kept rows of all pools read and written; indices in, slots out, tables in and freed blocks out."""
    return Counts(_moved_bytes(c) + 16 * c.kept + 8 * c.B * (-(-c.N // BLOCK)), 0)


def _prune_counts(c: Case) -> Counts:
    rows = (c.tokens + c.P + c.kept) * c.D * c.dtype.itemsize
    return Counts(rows + 4 * c.tokens + 16 * c.kept + _moved_bytes(c),
                  2 * c.tokens * c.P * c.D + 2 * (c.tokens + c.P) * c.D)


def _check_pools(call: Call, kv: Sequence[Tensor], source: Tensor, slots: Tensor) -> None:
    """The pools hold the rows `source` of what they held, at `slots`, and else what they held; then restores them."""
    wrong = []
    for i, t in enumerate(kv):
        before = call.scratch[f"pool {i}"]
        want = before.clone().flatten(0, 1)
        want[slots] = before.flatten(0, 1)[source]
        if not torch.equal(t.flatten(0, 1), want):
            wrong.append(i)
        t.copy_(before)
    assert not wrong, f"pools {wrong} do not hold the kept tokens"


def _check_compact(case: Case, call: Call, outputs: tuple) -> None:
    kv, table, target, indices, in_place = call.peer_args
    slots = _new_slots(target, indices)
    _check_pools(call, kv, slots_of(table, indices).flatten(), slots.flatten())
    for got, want in zip(outputs, _metadata(table, indices, slots, in_place), strict=True):
        assert torch.equal(got, want), "lengths, slots or freed blocks are wrong"


def _check_prune(case: Case, call: Call, outputs: tuple) -> None:
    hidden, _, lengths, ks, kv, table, new = call.peer_args
    rows, indices, scores, _, new_lengths, slots, _ = outputs
    begin, source, target = 0, [], []
    for b, (n, part) in enumerate(zip(lengths, indices.split(ks), strict=True)):
        chosen = oracle_topk(scores[None, begin:begin + n].cpu(), ks[b], False)[0]
        exact = scores[begin:begin + n][part - begin].sort().values.cpu()
        assert torch.equal(exact, scores[begin:begin + n].cpu()[chosen].sort().values), "not the lowest scores"
        source.append(slots_of(table[b:b + 1], part[None] - begin)[0])
        target.append(_new_slots(new[b:b + 1], part[None])[0])
        begin += n
    _check_pools(call, kv, torch.cat(source), torch.cat(target))
    assert torch.equal(slots, torch.cat(target)), "not the slots of the kept tokens"
    assert torch.equal(rows, hidden[indices]), "not the kept rows"
    assert new_lengths.tolist() == list(ks), "not the new lengths"


def _peer_compact(case: Case, call: Call, theirs: tuple, ours: tuple) -> None:
    _check_compact(case, call, theirs)


def _peer_prune(case: Case, call: Call, theirs: tuple, ours: tuple) -> None:
    _check_prune(case, call, theirs)
    assert torch.equal(theirs[6], ours[6]), "other freed blocks"


OPS = {
    "compact_kv_paged": Family(
        (Case("compact_kv_paged", "32-layers-2880-H8-in-place", BF16, _BOTH, N=2880, H=8, d=128, layers=32, keep=0.25,
              option="in place"),
         Case("compact_kv_paged", "32-layers-2880-H8-new-pages", BF16, _BOTH, N=2880, H=8, d=128, layers=32, keep=0.25,
              option="new pages", goal_copy_share=0.75),
         Case("compact_kv_paged", "4-layers-16x576-H8-in-place", BF16, _BOTH, B=16, N=576, H=8, d=128, layers=4,
              keep=0.25, option="in place"),
         Case("compact_kv_paged", "tiny", F32, ("quick",), B=2, N=40, H=2, d=8, layers=2, option="new pages")),
        _compact_counts, _compact, {"eager": compact_usual, "better": compact_better}, _check_compact, _peer_compact,
        compiles=False),
    "prune_topk_paged": Family(
        (Case("prune_topk_paged", "8-sequences-6970x3584-P64", BF16, _BOTH, D=3584, P=64, H=4, d=128, layers=1,
              lengths=LENGTHS),
         Case("prune_topk_paged", "tiny", F32, ("quick",), D=32, P=5, H=2, d=8, layers=1, lengths=(20, 1, 15))),
        _prune_counts, _prune, {"eager": prune_usual}, _check_prune, _peer_prune, compiles=False),
}
