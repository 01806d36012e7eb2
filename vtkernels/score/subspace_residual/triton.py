"""A program projects a tile of tokens, keeps the coordinates in scratch memory, and sums the residual's squares."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup


@triton.jit
def load_block(base, row_stride, dim_stride, row, block, rows, d, BLOCK_D: tl.constexpr):
    dim = block + tl.arange(0, BLOCK_D)
    at = row[:, None] * row_stride + dim.to(tl.int64)[None, :] * dim_stride
    return tl.load(base + at, mask=(row < rows)[:, None] & (dim < d)[None, :], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["batch_stride", "token_stride", "dim_stride", "n", "d", "basis_batch", "basis_stride",
                               "basis_dim_stride", "r", "out_batch", "tiles"])
def residual_kernel(tokens, batch_stride: tl.int64, token_stride: tl.int64, dim_stride: tl.int64, n: tl.int64,
                    d: tl.int32, basis, basis_batch: tl.int64, basis_stride: tl.int64, basis_dim_stride: tl.int64,
                    r: tl.int32, coordinates, out, out_batch: tl.int64, tiles: tl.int64, BLOCK_N: tl.constexpr,
                    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    batch = item // tiles
    token = (item % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens += batch * batch_stride
    basis += batch * basis_batch
    wide_r = r.to(tl.int64)
    rows = coordinates + (batch * n + token)[:, None] * wide_r  # [B, N, r]
    for first in range(0, r, BLOCK_R):
        direction = first + tl.arange(0, BLOCK_R)
        products = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
        for block in range(0, d, BLOCK_D):
            x = load_block(tokens, token_stride, dim_stride, token, block, n, d, BLOCK_D)
            b = load_block(basis, basis_stride, basis_dim_stride, direction.to(tl.int64), block, wide_r, d, BLOCK_D)
            products = tl.dot(x, tl.trans(b), products, input_precision="ieee")
        tl.store(rows + direction[None, :], products, mask=(token < n)[:, None] & (direction < r)[None, :])
    tl.debug_barrier()  # other threads of the block read the coordinates
    squares = tl.zeros((BLOCK_N,), tl.float32)
    for block in range(0, d, BLOCK_D):
        part = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for first in range(0, r, BLOCK_R):
            direction = first + tl.arange(0, BLOCK_R)
            c = tl.load(rows + direction[None, :], mask=(token < n)[:, None] & (direction < r)[None, :], other=0.0)
            b = load_block(basis, basis_stride, basis_dim_stride, direction.to(tl.int64), block, wide_r, d, BLOCK_D)
            part = tl.dot(c, b, part, input_precision="ieee")
        x = load_block(tokens, token_stride, dim_stride, token, block, n, d, BLOCK_D)
        residual = x - part
        squares += tl.sum(residual * residual, 1)
    tl.store(out + batch * out_batch + token, tl.sqrt(squares), mask=token < n)


def subspace_residual_out(tokens: Tensor, basis: Tensor, *, out: Tensor) -> None:
    if out.numel() == 0:
        return
    batch, n, d = tokens.shape
    r = basis.shape[1]
    config = lookup.config("subspace_residual", _triton.device_name(tokens.device), tokens.dtype, n=n, d=d, r=r)
    tiles = triton.cdiv(n, config["block_n"])
    coordinates = torch.empty((batch, n, r), dtype=torch.float32, device=tokens.device)
    _triton.launch(residual_kernel, batch * tiles, tokens.device, tokens, *tokens.stride(), n, d, basis,
                   *basis.stride(), r, coordinates, out, out.stride(0), tiles, BLOCK_N=config["block_n"],
                   BLOCK_R=config["block_r"], BLOCK_D=config["block_d"], num_warps=config["num_warps"],
                   num_stages=config["num_stages"])
