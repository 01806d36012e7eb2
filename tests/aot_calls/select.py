"""The selecting ops, plain and with every option."""

from collections.abc import Iterator

import torch

Calls = Iterator[tuple[tuple, dict]]


def int32(length: int) -> torch.Tensor:
    return torch.empty(length, dtype=torch.int32)


def masks(*shape: int) -> dict[str, torch.Tensor]:
    return {name: torch.empty(*shape, dtype=torch.bool) for name in ("protected", "excluded")}


def topk(match: dict, dtype: torch.dtype) -> Calls:
    n = match.get("n", 4096)
    for largest in (True, False):
        yield (torch.empty(1, n), n // 4), {"largest": largest}
    yield (torch.empty(1, n), n // 4), {"ks": int32(1), **masks(1, n), "order": "score"}


def varlen(match: dict, dtype: torch.dtype) -> Calls:
    n = match.get("n", 4096)
    yield (torch.empty(n), int32(9), int32(8), n // 4), {}
    yield (torch.empty(n), int32(9), int32(8), n // 4), {"largest": False, "order": "score", **masks(n)}


def quota(match: dict, dtype: torch.dtype) -> Calls:
    n = match.get("n", 4096)
    yield (torch.empty(2, n), int32(9), n // 4, 3), {}
    yield (torch.empty(2, n), int32(9), n // 4, 3), {"largest": False, "order": "score", **masks(2, n)}


def threshold(match: dict, dtype: torch.dtype) -> Calls:
    n = match.get("n", 4096)
    yield (torch.empty(2, n), 0.5), {}
    yield (torch.empty(2, n), 0.5), {"largest": False, "min_keep": 3, "thresholds": torch.empty(2)}


def top_p(match: dict, dtype: torch.dtype) -> Calls:
    yield (torch.empty(2, match.get("n", 4096)), 0.5), {}


def budget(match: dict, dtype: torch.dtype) -> Calls:
    yield (torch.empty(2, 64), 1000), {}
    yield (torch.empty(2, 64), 1000), {"capacity": torch.empty(2, 64, dtype=torch.int32)}


CALLS = {"select_topk": topk, "select_topk_varlen": varlen, "select_quota": quota, "select_threshold": threshold,
         "select_top_p": top_p, "allocate_budget": budget}
FLOATING: set[str] = set()
