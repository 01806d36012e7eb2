"""A tile of keys against all rows that its head serves: S^T = K Q^T, so that a key's sum over rows stays in registers.

Work is split over keys, and over key heads where tiles of keys alone would leave the GPU idle; what the heads of keys
find is then added in their order. Without `lse` a kernel before finds the maximum and the sum of each row over a fixed
number of keys at a time, and a small one combines them.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ... import _triton
from ...tuning import lookup
from ._row_sums import combine_rows_kernel, row_sums_kernel
from ._scores import COMPUTED, GIVEN, LOGITS, combine_heads_kernel, scores_kernel

COMBINE_BLOCK = 128


@dataclass
class Attention:
    """What both ops hand to the kernels. Strides are (batch, head, row, dim) or the first of these.

    Packed: `bounds` holds (row, rows, key, keys) of each sequence, and `rows` and `keys` are those of the longest.
    Paged: `table` too, and the batch stride of the keys is that of the blocks.
    """

    op: str
    query: Tensor
    query_strides: tuple[int, ...]
    key: Tensor
    key_strides: tuple[int, ...]
    batch: int
    heads: int
    key_heads: int
    rows: int
    keys: int
    all_rows: int  # of the batch
    lse: Tensor | None
    row_weights: Tensor | None
    scale: float | None
    causal: bool
    offset: int
    key_start: int
    count: int     # keys of a sequence that are scored
    reduce_rows: str
    reduce_heads: str
    logits: bool
    out: Tensor
    parts: int | None
    bounds: Tensor | None = None
    table: Tensor | None = None
    block_size: int = 1
    status: Tensor | None = None

    def __post_init__(self) -> None:
        d = self.query.shape[-1]
        self.group = self.heads // self.key_heads
        self.config = lookup.config(self.op, _triton.device_name(self.query.device), self.query.dtype,
                                    r=self.rows * self.group, n=self.keys, d=d)
        fast = (_triton.aligned16(self.query, *self.query_strides[:3])
                and _triton.aligned16(self.key, *self.key_strides[:3]))
        # Without alignment each element has an address of its own, in registers: tiles must be small.
        block_d = self.config["block_d"] if fast else min(32, self.config["block_d"])
        block_d = min(block_d, max(16, _triton.pow2_at_least(d)))
        self.options = {"CAUSAL": self.causal, "UPCAST": _triton.interpreted(), "FAST": fast,
                        "EVEN_D": d % block_d == 0, "SINGLE": d <= block_d, "BLOCK_K": self.config["block_k"],
                        "BLOCK_D": block_d, "num_warps": self.config["num_warps"],
                        "num_stages": self.config["num_stages"]}
        self.tiles = triton.cdiv(self.count, self.config["block_k"])
        if self.parts is None:
            enough = 2 * _triton.multiprocessors(self.query.device)
            split = self.reduce_heads == "none" or self.batch * self.tiles < enough
            self.parts = self.key_heads if split else 1
        total = self.out.shape[-1] if self.bounds is not None else self.batch * self.count
        self.partial = None
        if self.parts > 1 and self.reduce_heads != "none":
            self.partial = torch.empty(self.parts, total, dtype=torch.float32, device=self.out.device)

    def block_r(self, rows: int) -> int:
        return min(self.config["block_r"], max(16, _triton.pow2_at_least(rows)))

    def common(self) -> tuple:
        d = self.query.shape[-1]
        factor = d ** -0.5 if self.scale is None else self.scale
        table: tuple[Any, ...] = (None, 0, 0, 0, 1, 0)
        if self.table is not None:
            table = (self.table, *self.table.stride(), self.table.shape[1], self.block_size, self.key.shape[0])
        return (self.query, *self.query_strides, self.key, *self.key_strides, self.bounds, *table, self.rows, self.keys,
                self.offset, self.group, self.key_heads, d, factor if self.logits else factor * math.log2(math.e))

    def row_sums(self) -> tuple:
        """Maxima and sums of all rows, and their strides (batch, head, row)."""
        split_keys = self.config["split_keys"]
        splits = triton.cdiv(self.keys, split_keys)
        packed = self.bounds is not None
        strides = (0, self.all_rows, 1) if packed else (self.heads * self.rows, self.rows, 1)
        count = self.heads * self.all_rows
        maxima, sums = torch.empty(2, max(splits, 1), count, dtype=torch.float32, device=self.query.device)
        block_r = self.block_r(self.rows * self.group)
        row_tiles = triton.cdiv(self.rows * self.group, block_r)
        programs = self.batch * self.key_heads * row_tiles * splits
        if programs:
            # Fused, a logit would differ from the maximum of its row by a rounding, which is large for large logits.
            _triton.launch(row_sums_kernel, programs, self.query.device, *self.common(), maxima, sums, *strides, count,
                           row_tiles, splits, BLOCK_R=block_r, SPLIT_KEYS=split_keys, fp_fusion=False, **self.options)
        if splits > 1:
            _triton.launch(combine_rows_kernel, triton.cdiv(count, COMBINE_BLOCK), self.query.device, maxima, sums,
                           count, splits, BLOCK=COMBINE_BLOCK, num_warps=4)
        return maxima, sums, *strides

    def launch(self) -> None:
        no_batch = () if self.bounds is None else (0,)  # packed tensors have no batch stride
        mode = LOGITS
        stats: tuple[Any, ...] = (None, None, 0, 0, 0)
        if self.lse is not None:
            mode, stats = GIVEN, (self.lse, None, *no_batch, *self.lse.stride())
        elif not self.logits:
            mode, stats = COMPUTED, self.row_sums()
        weights: tuple[Any, ...] = (None, 0, 0)
        if self.row_weights is not None:
            weights = (self.row_weights, *no_batch, *self.row_weights.stride())
        # Rows of several heads in a tile cannot be left out together.
        flat = (self.reduce_rows != "max" and self.reduce_heads in ("mean", "sum")
                and (not self.causal or self.rows <= self.config["block_r"]))
        target, out_head, out_part = self.out, 0, 0
        out_batch = self.out.stride(0) if self.bounds is None else 0
        if self.reduce_heads == "none":
            out_head = self.out.stride(-2)
        elif self.partial is not None:
            target, out_batch, out_part = self.partial, self.count, self.partial.stride(0)
        _triton.launch(scores_kernel, self.batch * self.tiles * self.parts, self.query.device, *self.common(), *stats,
                       *weights, self.key_start, self.count, self.tiles, self.parts, target, out_batch, out_head,
                       out_part, self.status, MODE=mode.value, REDUCE_ROWS=self.reduce_rows,
                       REDUCE_HEADS=self.reduce_heads, FLAT=flat, PARTIAL=self.partial is not None,
                       BLOCK_R=self.block_r(self.rows * self.group if flat else self.rows), fp_fusion=False,
                       **self.options)
        if self.partial is not None:
            parts, total = self.partial.shape
            columns = total if self.bounds is not None else self.count
            _triton.launch(combine_heads_kernel, triton.cdiv(total, COMBINE_BLOCK), self.query.device, self.partial,
                           total, columns, parts, self.heads, self.out, self.out.stride(0) if self.out.dim() > 1 else 0,
                           REDUCE_HEADS=self.reduce_heads, BLOCK=COMBINE_BLOCK, num_warps=4)


def attention_scores_out(query: Tensor, key: Tensor, *, lse: Tensor | None = None, row_weights: Tensor | None = None,
                         scale: float | None = None, causal: bool = False, causal_offset: int | None = None,
                         key_start: int = 0, key_len: int = -1, reduce_rows: str = "mean", reduce_heads: str = "mean",
                         logits: bool = False, layout: str = "HND", out: Tensor, _parts: int | None = None) -> None:
    """`_parts` is for tests and benchmarks: 1, or the heads of `key`, programs for each tile of keys."""
    if out.numel() == 0:
        return
    if layout == "NHD":
        query, key = query.transpose(1, 2), key.transpose(1, 2)
    batch, heads, rows, _ = query.shape
    keys = key.shape[2]
    offset = max(-rows, min(keys - rows if causal_offset is None else causal_offset, keys))
    Attention("attention_scores", query, query.stride(), key, key.stride(), batch, heads, key.shape[1], rows, keys,
              batch * rows, lse, row_weights, scale, causal, offset, key_start, out.shape[-1], reduce_rows,
              reduce_heads, logits, out, _parts).launch()
