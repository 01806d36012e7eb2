"""temporal_scores, row_statistics, subspace_residual."""

from collections.abc import Iterator

import torch


def temporal(match: dict, dtype: torch.dtype) -> Iterator[tuple[tuple, dict]]:
    aligned = torch.empty(1, 9, 196, 3584, dtype=dtype)
    for metric in ("cosine", "l1", "l2"):
        yield (aligned,), {"metric": metric}
    yield (torch.empty(1, 9, 4, 9216, dtype=dtype),), {}  # longer than a block
    yield (torch.empty(1, 9, 196, 129, dtype=dtype)[..., 1:],), {}


def statistics(match: dict, dtype: torch.dtype) -> Iterator[tuple[tuple, dict]]:
    yield (torch.empty(64, 3584, dtype=dtype),), {}
    yield (torch.empty(64, 129, dtype=dtype)[:, 1:],), {}


def residual(match: dict, dtype: torch.dtype) -> Iterator[tuple[tuple, dict]]:
    yield (torch.empty(4, 4096, 128, dtype=dtype), torch.empty(4, 32, 128, dtype=dtype)), {}


CALLS = {"temporal_scores": temporal, "row_statistics": statistics, "subspace_residual": residual}
FLOATING = set(CALLS)
