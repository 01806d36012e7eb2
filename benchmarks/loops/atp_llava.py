"""ATP-LLaVA from the stored attention matrices, before and after the softmax."""

import copy
from typing import Any

import torch

from vtkernels.methods import Inputs, Result
from vtkernels.methods.atp_llava import Thresholds

from . import attention, on_grid, padded, probabilities, stack


def thresholds(width: int, redundancy: float, place: float) -> Thresholds:
    """Thresholds about the two values given, which the mean scores move."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Thresholds(width)
    with torch.no_grad():
        module.lift.weight.mul_(30)
        module.lift.bias.zero_()
        module.out.bias.copy_(torch.tensor([redundancy, place]).logit())
    return module


VARIANTS = {"default": {"thresholds": thresholds(8, 0.05, 0.2)},
            "grids": {"thresholds": thresholds(8, 0.05, 0.4), "sampling": (0.25, 0.111), "penalty": 2.5},
            "over-keys": {"thresholds": thresholds(8, 0.02, 0.6), "quirk_mean_over_keys": True}}
TYPICAL: dict = {"thresholds": thresholds(4096, 0.05, 0.2)}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    grid, width, heads, kv_heads, head, text = {
        "small": ((1, 6, 6), 16, 4, 2, 8, 5), "odd": ((1, 7, 7), 16, 4, 4, 8, 7),
        "typical": ((1, 24, 24), 4096, 32, 32, 128, 64)}[size]
    n = grid[1] * grid[2]
    keys = 3 + n + text
    layer = attention(batch, heads, kv_heads, keys, keys, head, generator, start=3, causal=True)
    positions = torch.arange(3, 3 + n).expand(batch, n)
    return on_grid(batch, grid, width, generator, positions=positions, decoder=(layer,))


@torch.no_grad()
def loop(method: Any, inputs: Inputs, stage: int = 0) -> Result:
    assert inputs.grid is not None
    layer, (_, rows, columns) = inputs.decoder[-1], inputs.grid
    results = []
    for row, tokens in enumerate(inputs.tokens):
        n, start = len(tokens), layer.start
        query, key = layer.query[row], layer.key[row]
        key = key.repeat_interleave(len(query) // len(key), 0)
        block = (query @ key.mT * query.shape[-1] ** -0.5)[:, start:start + n, start:start + n].mean(0)
        own = block.mean(1 if method.quirk_mean_over_keys else 0)
        cross = probabilities(layer, row)[:, start + n:, start:start + n].mean((0, 1))
        module = method.thresholds
        if module.out.weight.dtype != tokens.dtype:
            module = copy.deepcopy(module).to(tokens)
        means = torch.stack([own.mean(), cross.mean()])
        limits = module.out(module.lift(means)).sigmoid().tolist()
        scores = (own + cross) / 2
        places = [[max([1 - method.penalty * r for r in method.sampling
                        if y % round(r ** -0.5) == 0 and x % round(r ** -0.5) == 0], default=0.0)
                   for x in range(columns)] for y in range(rows)]
        indices = [i for i in range(n) if scores[i].item() > limits[0] or places[i // columns][i % columns] > limits[1]]
        results.append(padded(inputs, row, torch.tensor(indices, device=tokens.device), n, scores=scores[None]))
    return stack(results)
