"""compact_kv_paged, with the launches that prune_topk_paged makes of it."""

from collections.abc import Iterator

import torch

from vtkernels import _library
from vtkernels.compact.compact_kv_paged.triton import compact


def compact_kv_paged(match: dict, dtype: torch.dtype) -> Iterator[tuple[tuple, dict]]:
    pools = [torch.empty(64, 16, 8, 128, dtype=torch.bfloat16) for _ in range(8)]
    table, lengths = torch.zeros(2, 30, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    indices = torch.zeros(2, 100, dtype=torch.int64)
    yield (pools, table, lengths, indices), {}
    mixed = [torch.empty(64, 3, 16, 1, dtype=t) for t in (torch.uint8, torch.int16, torch.float32, torch.int64)]
    yield (pools[:1] + [t.transpose(1, 2) for t in mixed], table, lengths, indices.int()), {
        "counts": lengths, "dst_block_table": table}
    outs = _library.allocate(_library.CONTRACTS["compact_kv_paged"](pools, table, lengths, indices))
    spans = torch.zeros(2, 5, dtype=torch.int64)
    compact("prune_topk_paged", pools, table, lengths, indices[0], None, spans, None, "NHD", False, outs[0], outs[1][0],
            outs[2], None)


CALLS = {"compact_kv_paged": compact_kv_paged}
FLOATING: set[str] = set()
