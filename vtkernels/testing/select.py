"""select_topk: positions by sorting (class, value, position), hostile samples."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .base import Sample, rand


def oracle_topk(scores: Tensor, k: int, largest: bool) -> list[list[int]]:
    """Exact positions per row: NaN last, better score first, lower position first, then ascending."""
    rows = []
    for row in scores.detach().cpu().float().numpy():
        def rank(i: int, row: np.ndarray = row) -> tuple:
            value = float(row[i])
            return (1, 0.0, i) if np.isnan(value) else (0, -value if largest else value, i)

        rows.append(sorted(sorted(range(len(row)), key=rank)[:k]))
    return rows


def topk_samples() -> Iterator[Sample]:
    nan, inf = float("nan"), float("inf")
    edge = torch.tensor([[0.0, -0.0, nan, inf, -inf, 1.0, 1.0, -nan, 1e-45, -1e-45, 3.4e38, -3.4e38, 0.5]])
    for largest in (True, False):
        tag = "largest" if largest else "smallest"
        for k in range(edge.shape[1] + 1):
            yield Sample(f"edge-{tag}-k{k}", (edge, k), {"largest": largest})
        ties = (rand(3, 257) * 2).round()
        for k in (0, 1, 100, 256, 257):
            yield Sample(f"ties-{tag}-k{k}", (ties, k), {"largest": largest})
        for n, k in ((0, 0), (1, 1), (1, 0), (64, 13), (1000, 250), (4099, 1024), (70001, 17500)):
            yield Sample(f"random-{tag}-n{n}-k{k}", (rand(2 if n < 5000 else 1, n), k), {"largest": largest})
        yield Sample(f"equal-{tag}", (torch.full((2, 300), 0.25), 77), {"largest": largest})
        yield Sample(f"all-nan-{tag}", (torch.full((1, 40), nan), 7), {"largest": largest})
        yield Sample(f"cosines-{tag}", (0.9 + 0.01 * rand(1, 2880), 288), {"largest": largest})
        yield Sample(f"strided-{tag}", (rand(6, 90)[::2, ::3], 11), {"largest": largest})
        yield Sample(f"expanded-{tag}", (rand(1, 33).expand(4, 33), 5), {"largest": largest})
    yield Sample("no-rows", (rand(0, 5), 2), {})
