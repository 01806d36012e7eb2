"""Find the launch parameters of an op in the tables: nearest match, nothing is tuned at run time.

A table is `<gpu>/<op>.json`: `{"source": how the values were found, "entries": [{"match": {...}, "config": {...}}]}`.
`match` may name `dtype` (a list: only those) and sizes of the call (`n`, `d`, `p`, ..); of the entries that admit the
dtype, the one whose sizes are nearest as ratios wins, the first one in a tie. A GPU without a table of its own uses
`default`. Tables in `VTKERNELS_TUNING_DIR` come before the shipped ones.
"""

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .. import _env

SHIPPED = Path(__file__).parent / "configs"
GATHER = ("block_rows", "block_bytes", "num_warps", "num_stages")
SCORE = ("block_n", "block_p", "block_d", "num_warps", "num_stages")
PRUNE = (*SCORE, "path", "select_block", "block_rows", "block_bytes", "programs_per_sm")
SELECT = ("select_block", "num_warps", "num_stages")
CLUSTER = (*SCORE, "select_block")
ATTENTION = ("block_k", "block_r", "block_d", "split_keys", "num_warps", "num_stages")
FIELDS = {
    "prototype_scores": SCORE,
    "prototype_topm": SCORE,
    "prototype_softmax_scores": SCORE,
    "select_diverse": ("block_n", "block_d", "num_warps", "num_stages", "pick_block", "pick_warps"),
    "attention_scores": ATTENTION,
    "attention_scores_varlen": ATTENTION,
    "select_topk": SELECT,
    "select_topk_varlen": SELECT,
    "select_quota": SELECT,
    "select_threshold": SELECT,
    "select_top_p": SELECT,
    "allocate_budget": SELECT,
    "match_bipartite": CLUSTER,
    "cluster_density_peaks": CLUSTER,
    "cluster_kmeans": CLUSTER,
    "cluster_kmedoids": CLUSTER,
    "gather_tokens": GATHER,
    "gather_kv": GATHER,
    "gather_kv_inplace": GATHER,
    "rotate_keys": ("block_n", "block_p", "block_h", "num_warps", "num_stages"),
    "cell_attention": ("block_n", "num_warps", "num_stages"),
    "argmax_attention": ("block_n", "block_p", "num_warps", "num_stages"),
    "merge_tokens": ("block_d", "num_warps", "num_stages"),
    "pool_span": ("block_d", "num_warps", "num_stages"),
    "shuffle_tokens": ("block_units", "num_warps", "num_stages"),
    "unshuffle_tokens": ("block_units", "num_warps", "num_stages"),
    "quantize_kv": ("block_elements", "chunk_rows", "num_warps", "num_stages"),
    "dequantize_kv": ("block_elements", "num_warps", "num_stages"),
    "compact_kv_paged": ("block_rows", "block_bytes", "num_warps"),
    "prune_topk": PRUNE,
    "prune_topk_varlen": PRUNE,
    "temporal_scores": ("block_d", "frames", "num_warps", "num_stages"),
    "row_statistics": ("block_d", "num_warps", "num_stages"),
    "subspace_residual": ("block_n", "block_r", "block_d", "num_warps", "num_stages"),
}
PATHS = ("one_launch", "two_launch")


def slug(device_name: str) -> str:
    """`NVIDIA H200` -> `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


def config(op: str, device_name: str, dtype: torch.dtype, **shape: int) -> dict[str, Any]:
    """Launch parameters of `op` for a call of this dtype and shape. The caller must not change the dict."""
    return _nearest(op, device_name, dtype, tuple(shape.items()), _env.TUNING_DIR)


@cache
def _nearest(op: str, device_name: str, dtype: torch.dtype, shape: tuple[tuple[str, int], ...],
             override: str) -> dict[str, Any]:
    folders = [Path(override), SHIPPED] if override else [SHIPPED]
    names = (slug(device_name), "default")
    path = next(p for f in folders for name in names if (p := f / name / f"{op}.json").is_file())
    tag = str(dtype).removeprefix("torch.")
    entries = [entry for entry in load(path, op) if tag in entry["match"].get("dtype", [tag])]
    if not entries:
        raise ValueError(f"tuning table {path}: no entry for dtype {tag}, allowed: at least one for every dtype used")

    def distance(entry: dict[str, Any]) -> float:
        return sum(abs(math.log2((size + 1) / (entry["match"].get(name, size) + 1))) for name, size in shape)

    return min(entries, key=distance)["config"]


@cache
def load(path: Path, op: str) -> list[dict[str, Any]]:
    """The checked entries of a table."""

    def fail(what: str, got: Any, allowed: str) -> None:
        raise ValueError(f"tuning table {path}: {what} is {got!r}, allowed: {allowed}")

    try:
        table = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"tuning table {path}: not JSON ({error})") from None
    if not isinstance(table, dict) or set(table) != {"source", "entries"}:
        fail("the top level", sorted(table) if isinstance(table, dict) else type(table).__name__,
             "an object of `source` and `entries`")
    if not isinstance(table["entries"], list) or not table["entries"]:
        fail("`entries`", table["entries"], "a list of at least one entry")
    for i, entry in enumerate(table["entries"]):
        if not isinstance(entry, dict) or set(entry) != {"match", "config"}:
            fail(f"entries[{i}]", entry, "an object of `match` and `config`")
        if not isinstance(entry["match"], dict) or not isinstance(entry["match"].get("dtype", []), list):
            fail(f"entries[{i}].match", entry["match"], "an object; `dtype` in it is a list of names")
        for name, size in entry["match"].items():
            if name != "dtype" and (type(size) is not int or size < 0):
                fail(f"entries[{i}].match.{name}", size, "an integer of at least 0")
        if not isinstance(entry["config"], dict) or set(entry["config"]) != set(FIELDS[op]):
            fail(f"entries[{i}].config", entry["config"], f"exactly {', '.join(FIELDS[op])}")
        for name, value in entry["config"].items():
            where = f"entries[{i}].config.{name}"
            if name == "path":
                if value not in PATHS:
                    fail(where, value, " or ".join(PATHS))
            elif type(value) is not int or value < 1:
                fail(where, value, "an integer of at least 1")
            elif name not in ("num_stages", "programs_per_sm") and value & (value - 1):
                fail(where, value, "a power of two")
    return table["entries"]
