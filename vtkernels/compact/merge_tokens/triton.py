"""One program per group and block of its row; the members come from a stable sort of the group numbers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup
from .reference import flag_bad_groups


@triton.jit(do_not_specialize=["token_batch", "token_stride", "dim_stride", "members_batch", "begin_batch",
                               "weight_batch", "weight_stride", "out_batch", "out_row", "size_batch", "groups", "width",
                               "blocks"])
def merge_kernel(tokens, token_batch: tl.int64, token_stride: tl.int64, dim_stride: tl.int64, members,
                 members_batch: tl.int64, begin, begin_batch: tl.int64, weights, weight_batch: tl.int64,
                 weight_stride: tl.int64, out, out_batch: tl.int64, out_row: tl.int64, sizes, size_batch: tl.int64,
                 groups: tl.int64, width: tl.int64, blocks: tl.int64, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    row = item // blocks
    block = item % blocks
    batch = row // groups
    group = row % groups
    first = tl.load(begin + batch * begin_batch + group)
    last = tl.load(begin + batch * begin_batch + group + 1)
    column = block * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    inside = column < width
    source = tokens + batch * token_batch + column * dim_stride
    target = out + batch * out_batch + group * out_row + column
    total = tl.zeros((BLOCK,), tl.float32)
    size = tl.zeros((), tl.float32)
    for place in range(first, last):
        member = tl.load(members + batch * members_batch + place)
        x = tl.load(source + member * token_stride, mask=inside, other=0.0).to(tl.float32)
        if weights is None:
            total += x
            size += 1.0
        else:
            weight = tl.load(weights + batch * weight_batch + member * weight_stride)
            total += weight * x
            size += weight
    if MEAN:
        total = tl.where(size != 0, total / tl.where(size != 0, size, 1.0), 0.0)
    tl.store(target, total, mask=inside)
    if MEAN:  # noqa: SIM102  (one condition of the compiler, one of the run)
        if last - first == 1:  # unchanged, whatever it holds
            alone = tl.load(members + batch * members_batch + first)
            tl.store(target, tl.load(source + alone * token_stride, mask=inside, other=0.0), mask=inside)
    if block == 0:
        tl.store(sizes + batch * size_batch + group, size)


def merge_tokens_out(tokens: Tensor, assignment: Tensor, groups: int, *, weights: Tensor | None = None,
                     reduce: str = "mean", out_tokens: Tensor, out_sizes: Tensor,
                     status: Tensor | None = None) -> None:
    flag_bad_groups(assignment, groups, status)
    batch, _, width = tokens.shape
    if batch == 0 or groups == 0:
        return
    member = (assignment >= 0) & (assignment < groups)
    if weights is not None:
        member &= weights != 0
    # `sort` keeps the strides of what it sorts.
    ordered, members = torch.where(member, assignment, groups).contiguous().sort(dim=1, stable=True)
    edges = torch.arange(groups + 1, device=tokens.device, dtype=ordered.dtype)
    begin = torch.searchsorted(ordered, edges.expand(batch, -1).contiguous())
    config = lookup.config("merge_tokens", _triton.device_name(tokens.device), tokens.dtype, n=tokens.shape[1],
                           d=width)
    blocks = max(1, triton.cdiv(width, config["block_d"]))
    weight_strides = (0, 0) if weights is None else weights.stride()
    _triton.launch(merge_kernel, batch * groups * blocks, tokens.device, tokens, *tokens.stride(), members,
                   members.stride(0), begin, begin.stride(0), weights, *weight_strides, out_tokens,
                   *out_tokens.stride()[:2], out_sizes, out_sizes.stride(0), groups, width, blocks,
                   MEAN=reduce == "mean", BLOCK=config["block_d"], num_warps=config["num_warps"],
                   num_stages=config["num_stages"])
