"""Gathers with indices for all, for each head and for each tensor; rotation of both kinds of pairs."""

import torch


def gather_kv_inplace(match, dtype):
    status = torch.zeros(1, dtype=torch.int32)
    kv = [torch.empty(1, 8, 4096, 128, dtype=torch.float16) for _ in range(2)]
    for lead in ((1,), (2, 1, 8)):
        yield (kv, torch.zeros(*lead, 1024, dtype=torch.int64)), {"status": status}
    kv = [torch.empty(1, 8, 4096, 3, dtype=t) for t in (torch.int64, torch.int32, torch.int16, torch.int8)]
    yield (kv, torch.zeros(1, 8, 1024, dtype=torch.int32)), {"status": status}
    yield ([kv[0][..., :0]], torch.zeros(1, 1024, dtype=torch.int64)), {"status": status}


def rotate_keys(match, dtype):
    keys, deltas = torch.empty(1, 8, 1024, 128, dtype=dtype), torch.zeros(3, 1, 1024, dtype=torch.int64)
    yield (keys, deltas[0], torch.empty(64)), {}
    yield (keys, deltas, torch.empty(3, 64)), {}
    yield (keys, deltas[0].int(), torch.empty(64)), {"interleaved": True}


CALLS = {"gather_kv_inplace": gather_kv_inplace, "rotate_keys": rotate_keys}
FLOATING = {"rotate_keys"}
