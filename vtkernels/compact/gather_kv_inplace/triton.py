"""The row mover of `gather_tokens`, one program for each stripe, walking its rows in order."""

from collections.abc import Sequence

from torch import Tensor

from ..gather_kv.triton import move_kv


def gather_kv_inplace_out(kv: Sequence[Tensor], indices: Tensor, *, kv_layout: str = "HND",
                          status: Tensor | None = None) -> None:
    move_kv("gather_kv_inplace", kv, kv, indices, kv_layout, status, in_place=True)
