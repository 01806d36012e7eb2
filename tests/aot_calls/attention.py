"""The attention scores: rows of many heads and few, with and without denominators, packed and paged."""

from collections.abc import Iterator
from typing import Any

import torch

Calls = Iterator[tuple[tuple, dict[str, Any]]]


def attention_scores(match: dict[str, Any], dtype: torch.dtype) -> Calls:
    rows, keys, d = match["r"] // 7, match["n"], match["d"]
    query, key = torch.empty(1, 14, rows, d, dtype=dtype), torch.empty(1, 2, keys, d, dtype=dtype)
    yield (query, key), {"lse": torch.empty(1, 14, rows)}
    yield (query, key), {"causal": True, "row_weights": torch.empty(1, rows), "reduce_rows": "max",
                         "reduce_heads": "max"}
    yield (query[:, :, :1], key[..., ::2].repeat_interleave(2, -1)), {"logits": True, "reduce_heads": "none"}


def attention_scores_varlen(match: dict[str, Any], dtype: torch.dtype) -> Calls:
    rows, d = match["r"] // 7, match["d"]
    cu = torch.zeros(2, dtype=torch.int32)
    yield (torch.empty(rows, 14, d, dtype=dtype), torch.empty(8, 16, 2, d, dtype=dtype), cu, cu, 128, rows, 128), {
        "block_table": torch.empty(1, 8, dtype=torch.int32), "causal": True, "row_weights": torch.empty(rows)}


CALLS = {"attention_scores": attention_scores, "attention_scores_varlen": attention_scores_varlen}
FLOATING = {"attention_scores", "attention_scores_varlen"}
