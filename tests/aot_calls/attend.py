"""cell_attention and argmax_attention, the latter with and without a mask."""

import torch


def cell_attention(match, dtype):
    query, keys = torch.empty(1, 8, 144, 128, dtype=dtype), torch.empty(1, 8, 576, 128, dtype=dtype)
    yield (query, keys, keys, 24, 2), {}


def argmax_attention(match, dtype):
    query, key = torch.empty(1, 8, 100, 32, dtype=dtype), torch.empty(1, 8, 512, 32, dtype=dtype)
    for allowed in (None, torch.empty(1, 100, 512, dtype=torch.bool)):
        yield (query, key), {"allowed": allowed}


CALLS = {"cell_attention": cell_attention, "argmax_attention": argmax_attention}
FLOATING = set(CALLS)
