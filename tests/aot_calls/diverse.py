"""select_diverse: each objective, with and without seeds and relevance."""

from collections.abc import Iterator

import torch


def select_diverse(match: dict, dtype: torch.dtype) -> Iterator[tuple[tuple, dict]]:
    x, k = torch.empty(1, 576, 1024, dtype=dtype), 64
    yield (x, k), {"seeds": torch.zeros(1, 2, dtype=torch.int64)}
    yield (x, k), {"objective": "dpp", "relevance": torch.empty(1, 576)}
    if dtype == torch.float32:  # only the similarities depend on the dtype
        yield (x, k), {"objective": "max_sum"}
        yield (x, k), {"objective": "dpp"}
    yield (torch.empty(1, 576, 129, dtype=dtype)[..., 1:], k), {}


CALLS = {"select_diverse": select_diverse}
FLOATING = {"select_diverse"}
