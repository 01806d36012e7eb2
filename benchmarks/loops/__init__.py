"""Every method as its usual code runs it: one row at a time, full matrices, Python loops. Written from the papers and
apart from the ops, these are what `vtkernels.methods` is checked against and timed beside.

A module per method, of the method's name, with

- `VARIANTS`: the configurations that are checked, by name;
- `TYPICAL`: the configuration that is timed;
- `inputs(batch, size, generator)`: random `Inputs`, `size` being "small" or "odd" (for checks: two unlike shapes) or
  "typical" (for timing: the shapes of the paper's models);
- `loop(method, inputs, stage=0)`: the `Result`, computed in the dtype of the inputs (checks give float64).
"""

import importlib
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vtkernels import methods

SIZES = ("small", "odd", "typical")


def loop_of(name: str) -> ModuleType:
    """The module of a method."""
    return importlib.import_module(f"{__name__}.{name}")


def make(name: str, size: str, batch: int = 1, seed: int = 0) -> methods.Inputs:
    return loop_of(name).inputs(batch, size, torch.Generator().manual_seed(seed))


def on_grid(batch: int, grid: tuple[int, int, int], width: int, generator: torch.Generator,
            **fields: Any) -> methods.Inputs:
    """Random tokens of all positions of a grid; `fields` are further ones of `Inputs`."""
    return methods.Inputs(hidden=torch.randn(batch, math.prod(grid), width, generator=generator), grid=grid, **fields)


def attention(batch: int, heads: int, kv_heads: int, rows: int, keys: int, width: int, generator: torch.Generator,
              **options: Any) -> methods.Attention:
    """Random projections with values; `options` are fields of `Attention`."""
    query = torch.randn(batch, heads, rows, width, generator=generator)
    key, value = torch.randn(2, batch, kv_heads, keys, width, generator=generator)
    return methods.Attention(query, key, value, **options)


def probabilities(layer: methods.Attention, row: int) -> Tensor:
    """The whole attention matrix of one batch entry, `[Hq, Tq, S]`, as eager attention stores it."""
    query, key = layer.query[row], layer.key[row]
    key = key.repeat_interleave(query.shape[0] // key.shape[0], 0)
    logits = query @ key.mT * (layer.scale or query.shape[-1] ** -0.5)
    if layer.causal:
        rows, keys = logits.shape[1:]
        hidden = torch.ones(rows, keys, dtype=torch.bool).triu(keys - rows + 1)
        logits = logits.masked_fill(hidden.to(logits.device), -torch.inf)
    return logits.softmax(-1)


def stack(results: list[methods.Result]) -> methods.Result:
    """Results of single rows, each with a batch of one, as one batch."""
    from vtkernels.methods._inputs import concatenate

    return concatenate(results)


def kept(inputs: methods.Inputs, row: int, indices: Tensor, **fields: Any) -> methods.Result:
    """The result of one row that keeps the tokens at `indices` `[K]`."""
    rows = {name: value[row:row + 1, indices] for name in ("positions", "sizes")
            if (value := getattr(inputs, name)) is not None}
    return methods.Result(inputs.tokens[row:row + 1, indices], indices[None], **{**rows, **fields})


def padded(inputs: methods.Inputs, row: int, indices: Tensor, length: int, **fields: Any) -> methods.Result:
    """`kept` with rows of zeros and positions of -1 up to `length`, and the count."""
    result = kept(inputs, row, indices)

    def fill(value: Tensor | None, number: int = 0) -> Tensor | None:
        if value is None:
            return None
        rest = value.new_full((1, length - value.shape[1], *value.shape[2:]), number)
        return torch.cat([value, rest], 1)

    counts = torch.tensor([len(indices)], dtype=torch.int32)
    return methods.Result(fill(result.hidden), fill(result.indices, -1), counts, positions=fill(result.positions),
                          sizes=fill(result.sizes), **fields)
