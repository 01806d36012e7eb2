"""TokenPacker with interpolation, permuted copies of the cells, and torch's attention over cells as a batch."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vtkernels.methods import Inputs, Result
from vtkernels.methods.tokenpacker import RegionToPoint

from . import on_grid, stack
from ._modules import like


def projector(scale: int, width: int = 16, levels: int = 2, out: int = 12, heads: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(scale)
        return RegionToPoint(width, levels, out, heads, scale).requires_grad_(False)


VARIANTS = {"two": {"projector": projector(2)}, "three": {"projector": projector(3)},
            "four": {"projector": projector(4)}}
TYPICAL: dict = {"projector": projector(2, 1024, 4, 4096, 8)}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    """24 x 24 tokens of four layers of CLIP-L for "typical"; two crops for "odd"."""
    grid, width = {"small": ((1, 12, 12), 32), "odd": ((2, 12, 24), 32), "typical": ((1, 24, 24), 4096)}[size]
    return on_grid(batch, grid, width, generator)


def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    _, rows, columns = inputs.grid
    p = like(method.projector, inputs.tokens)
    s, results = p.scale, []
    for tokens in inputs.tokens:
        parts, cells, first = [], [], 0
        for crop in tokens.split(rows * columns):
            fine = crop[:, -p.width:].T.view(1, p.width, rows, columns)
            coarse = F.interpolate(fine, (rows // s, columns // s), mode="bilinear").flatten(2).mT
            query = p.q_proj(coarse)
            key, value = (proj(crop[None]).view(rows // s, s, columns // s, s, p.width).transpose(1, 2)
                          .reshape(-1, s * s, p.width) for proj in (p.k_proj, p.v_proj))
            out, _ = F.multi_head_attention_forward(
                query, key.transpose(0, 1), value.transpose(0, 1), p.width, p.heads,
                torch.cat([p.in_q.weight, p.in_k.weight, p.in_v.weight]),
                torch.cat([p.in_q.bias, p.in_k.bias, p.in_v.bias]), None, None, False, 0.0, p.out_proj.weight,
                p.out_proj.bias)
            parts.append(p.mlp(out)[0])
            number = torch.arange(query.shape[1], dtype=tokens.dtype).view(1, 1, rows // s, columns // s) + first
            cells.append(F.interpolate(number, scale_factor=s).flatten().long())
            first += query.shape[1]
        results.append(Result(torch.cat(parts)[None], assignment=torch.cat(cells)[None]))
    return stack(results)
