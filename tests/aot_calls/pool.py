"""pool_span and the shuffles: wide rows and strided ones, integers of every width."""

import torch


def pool_span(match, dtype):
    tokens = torch.empty(1, 64, 1024, dtype=dtype)
    yield (tokens, 2), {"grid_width": 8}
    yield (tokens[..., ::2], 8), {}


def shuffle_tokens(match, dtype):
    yield (torch.empty(1, 64, 512, dtype=torch.int64), 8), {}
    for unit in (torch.int8, torch.int16, torch.int32, torch.int64, torch.complex128):
        yield (torch.empty(1, 64, 35, dtype=unit), 8), {"order": "channel"}
    yield (torch.empty(1, 64, 35, dtype=torch.int8), 8), {}


def unshuffle_tokens(match, dtype):
    yield (torch.empty(1, 16, 2048, dtype=torch.bfloat16), 8), {}
    yield (torch.empty(1, 16, 140, dtype=torch.bfloat16), 8), {"order": "channel"}


CALLS = {"pool_span": pool_span, "shuffle_tokens": shuffle_tokens, "unshuffle_tokens": unshuffle_tokens}
FLOATING = {"pool_span"}
