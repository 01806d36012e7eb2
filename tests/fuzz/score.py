"""Calls of the ops that score, and of the attentions."""

from itertools import pairwise

import torch

from vtkernels.score.prototype_scores.reference import reciprocal_norms
from vtkernels.testing import Sample

from .draws import Draws
from .tensors import FLOATS, bounds, floats, index, ints, lay_out

METRICS = ("cosine", "dot", "l2")


def _prototypes(d: Draws) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Tokens and prototypes, perhaps in groups, and options."""
    dtype = d.pick(FLOATS)
    n, width, count = d.size(24, 0), d.size(40), d.size(40)
    batch = (d.size(3, 0),) if d.chance(50) else ()
    groups = (d.size(3),) if d.chance(20) else ()
    options: dict = {"metric": d.pick(METRICS)}
    most = 18 if options["metric"] == "dot" else 37
    tokens = floats(d, *batch, n, *groups, width, dtype=dtype, most=most)
    # The oracle does not say which prototype is nearest where the squares of some of them overflow.
    prototypes = floats(d, *groups, count, width, dtype=dtype, most=most,
                        tame=options["metric"] == "l2")
    return tokens, prototypes, options


def _norms(d: Draws, prototypes: torch.Tensor) -> dict:
    return {"prototype_rnorm": lay_out(d, reciprocal_norms(prototypes), own=True)} if d.chance(30) else {}


def prototype_scores(d: Draws) -> Sample:
    tokens, prototypes, options = _prototypes(d)
    if options["metric"] == "cosine" and prototypes.dim() == 2:
        options |= _norms(d, prototypes)
    return Sample("", (tokens, prototypes), options)


def prototype_topm(d: Draws) -> Sample:
    tokens, prototypes, options = _prototypes(d)
    if options["metric"] == "cosine" and prototypes.dim() == 2:
        options |= _norms(d, prototypes)
    return Sample("", (tokens, prototypes, d.between(1, prototypes.shape[-2])), options)


def prototype_softmax_scores(d: Draws) -> Sample:
    dtype, width = d.pick(FLOATS), d.size(40)
    # Of pairs of bfloat16, each square under the smallest normal number may count as zero.
    most = 18 if dtype == torch.bfloat16 else 37
    tokens = floats(d, d.size(3, 0), d.size(24, 0), width, dtype=dtype, most=most)
    prototypes = floats(d, d.size(40), width, dtype=dtype, most=most)
    return Sample("", (tokens, prototypes), {"over_tokens": d.chance(50), **_norms(d, prototypes)})


def temporal_scores(d: Draws) -> Sample:
    options: dict = {"metric": d.pick(("cosine", "l1", "l2"))}
    if d.chance(30):
        options["first"] = d.pick((0.0, 0.5, float("nan"), -3.0))
    return Sample("", (floats(d, d.size(2, 0), d.size(6, 0), d.size(6, 0), d.size(30, 0), dtype=d.pick(FLOATS)),),
                  options)


def row_statistics(d: Draws) -> Sample:
    shape = [d.size(5, 0) for _ in range(d.between(0, 3))]
    return Sample("", (floats(d, *shape, d.size(60, 0), dtype=d.pick(FLOATS)),), {})


def subspace_residual(d: Draws) -> Sample:
    batch, width, dtype = d.size(2, 0), d.size(24, 0), d.pick(FLOATS)
    rank = d.between(0, width)
    square = torch.randn(batch, width, width, generator=torch.Generator().manual_seed(d.below(1000)))
    basis = torch.linalg.qr(square).Q[:, :rank].to(dtype)
    # Where the sums overflow depends on their order.
    return Sample("", (floats(d, batch, d.size(20, 0), width, dtype=dtype, most=18), lay_out(d, basis, own=True)), {})


def _heads(d: Draws) -> tuple[int, int]:
    shared = d.size(3)
    return shared * d.pick((1, 2, 3)), shared


def _attention_options(d: Draws) -> dict:
    return {"causal": d.chance(40), "reduce_rows": d.pick(("mean", "sum", "max")), "scale": d.pick((None, 0.3, -1.0)),
            "reduce_heads": d.pick(("mean", "sum", "max", "none")), "logits": d.chance(25)}


def attention_scores(d: Draws) -> Sample:
    batch, rows, keys, width, dtype = d.size(2, 0), d.size(8, 0), d.size(90, 0), d.size(20), d.pick(FLOATS)
    (hq, hk), layout = _heads(d), d.pick(("HND", "NHD"))
    shapes = [(batch, h, n, width) if layout == "HND" else (batch, n, h, width) for h, n in ((hq, rows), (hk, keys))]
    options = {**_attention_options(d), "layout": layout}
    if options["causal"] and d.chance(40):
        options["causal_offset"] = d.pick((d.between(-5, 40), -2**62, 2**62))
    if d.chance(40):
        options["key_start"] = d.between(0, keys)
        options["key_len"] = d.pick((-1, d.between(0, keys - options["key_start"])))
    if d.chance(25):
        options["row_weights"] = floats(d, batch, rows, tame=True).abs()  # sums of other signs cancel
    if d.chance(25) and not options["logits"]:
        options["lse"] = floats(d, batch, hq, rows, tame=True).abs() + 3
    query, key = (floats(d, *shape, dtype=dtype, most=18) for shape in shapes)
    return Sample("", (query, key), options)


def attention_scores_varlen(d: Draws) -> Sample:
    segments, rows, keys, width, dtype = d.size(4, 0), d.size(12, 0), d.size(60, 0), d.size(16), d.pick(FLOATS)
    (hq, hk), layout = _heads(d), d.pick(("NHD", "HND"))
    cu_q, cu_k = bounds(d, rows, segments), bounds(d, keys, segments)
    longest = [max([b - a for a, b in pairwise(cu)], default=0) for cu in (cu_q, cu_k)]
    most = [d.pick((max(0, n), limit, d.between(0, limit))) for n, limit in zip(longest, (rows, keys), strict=True)]
    most = [min(n, 2 * limit) for n, limit in zip(most, (rows, keys), strict=True)]
    options = {**_attention_options(d), "kv_layout": layout}
    if d.chance(50):
        size, blocks = d.size(16), d.size(8, 0)
        shape = (blocks, size, hk, width) if layout == "NHD" else (blocks, hk, size, width)
        width_of_table = d.pick((-(-keys // size), d.between(0, -(-keys // size))))
        options["block_table"] = index(d, (segments, width_of_table), blocks, torch.int32)
    else:
        shape = (keys, hk, width) if layout == "NHD" else (hk, keys, width)
    if d.chance(25):
        options["row_weights"] = floats(d, rows, tame=True).abs()
    if d.chance(25) and not options["logits"]:
        options["lse"] = floats(d, hq, rows, tame=True).abs() + 3
    query, key = floats(d, rows, hq, width, dtype=dtype, most=18), floats(d, *shape, dtype=dtype, most=18)
    return Sample("", (query, key, ints(d, cu_q),
                       ints(d, cu_k), keys, *most), options)


def cell_attention(d: Draws) -> Sample:
    batch, heads, cell, columns, rows = d.size(2, 0), d.size(3), d.between(1, 4), d.size(4), d.size(4, 0)
    width, dtype, cells = d.size(20), d.pick(FLOATS), columns * rows
    key, value = (floats(d, batch, heads, cells * cell * cell, width, dtype=dtype) for _ in range(2))
    return Sample("", (floats(d, batch, heads, cells, width, dtype=dtype), key, value, columns * cell, cell),
                  {"scale": d.pick((None, 0.3, -1.0))})


def argmax_attention(d: Draws) -> Sample:
    batch, heads, rows, keys, width = d.size(2, 0), d.size(3), d.size(12, 0), d.size(40, 0), d.size(20)
    dtype = d.pick(FLOATS)
    options: dict = {}
    if d.chance(50):
        allowed = torch.rand(batch, rows, keys, generator=torch.Generator().manual_seed(d.below(1000)))
        options["allowed"] = lay_out(d, allowed < d.pick((0.5, 0.05, 0.95)))
    return Sample("", (floats(d, batch, heads, rows, width, dtype=dtype),
                       floats(d, batch, heads, keys, width, dtype=dtype)), options)
