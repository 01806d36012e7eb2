"""merge_tokens: means and sums, with and without weights."""

import torch


def merge_tokens(match, dtype):
    tokens, groups = torch.empty(1, 64, 1024, dtype=dtype), torch.zeros(1, 64, dtype=torch.int64)
    for weights in (None, torch.empty(1, 64)):
        for reduce in ("mean", "sum"):
            yield (tokens, groups, 16), {"weights": weights, "reduce": reduce}


CALLS = {"merge_tokens": merge_tokens}
FLOATING = {"merge_tokens"}
