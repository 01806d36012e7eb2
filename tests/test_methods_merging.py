"""Errors and corners of the merging methods."""

import re
from dataclasses import replace

import pytest
import torch
from methods_suite import example
from torch import nn

import vtkernels
from benchmarks import loops
from vtkernels import methods
from vtkernels.methods.tokenpacker import coarse_grid


@pytest.mark.parametrize(("name", "config", "change", "message"), [
    ("tome", {"r": 1.5}, None, "`r` is 1.5, allowed: a share from 0.0 to 1.0"),
    ("turbo", {"r": -1}, None, "`r` is -1, allowed: a share from 0.0 to 1.0"),
    ("prumerge", {"fence": -1.0}, None, "`fence` is -1.0, allowed: 0 or more"),
    ("prumerge_plus", {"fence": -1.0}, None, "`fence` is -1.0, allowed: 0 or more"),
    ("centerclip", {"frames": 4}, None, "`frames` is 4, allowed: a divisor of 6 (those of `grid`)"),
    ("pt_dit", {"window": (1, 3, 2)}, None, "`window` is (1, 3, 2), allowed: divisors of (2, 4, 6) (`inputs.grid`)"),
    ("tokenpacker", {}, lambda i: replace(i, grid=(1, 9, 16)), "`inputs.grid` is (1, 9, 16), allowed: sides of a"),
    ("flash_pooling", {"queries": torch.zeros(8, 4)}, None, "`queries` is of shape (8, 4), allowed: [K, 16]"),
    ("convllava", {"conv": nn.Conv2d(16, 8, 3, 2)}, None, "`conv` is Conv2d(16, 8, kernel_size=(3, 3)"),
    ("convllava", {"conv": nn.Conv2d(16, 8, 2, 2, padding=1)}, None, "`conv` is Conv2d(16, 8, kernel_size=(2, 2)"),
])
def test_errors(name, config, change, message):
    inputs = example(name, "small", 2)
    first = next(iter(loops.loop_of(name).VARIANTS.values()))
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name}: {message}')}"):
        methods.get(name, **{**first, **config})(change(inputs) if change else inputs)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5])
def test_coarse_grid_is_bilinear(scale):
    tokens = torch.randn(2, 60 * 60, 3, generator=torch.Generator().manual_seed(scale))
    want = torch.nn.functional.interpolate(tokens.double().mT.unflatten(2, (60, 60)), scale_factor=1 / scale,
                                           mode="bilinear")
    torch.testing.assert_close(coarse_grid(tokens, 60, scale).double(), want.flatten(2).mT)


def test_prumerge_without_outliers_keeps_only_the_sum():
    inputs = example("prumerge", "small", 2)
    for name in ("prumerge", "prumerge_plus"):
        result = methods.get(name, fence=1e6)(inputs)
        assert result.counts.tolist() == [1, 1]
        want = (result.scores[..., None] * inputs.tokens).sum(1)
        torch.testing.assert_close(result.hidden[:, 0], want)
        assert not bool(result.hidden[:, 1:].any())
        assert not bool(result.assignment.any())


def test_prumerge_takes_up_the_first_of_equal_neighbours():
    """Keys of one direction: all are equally similar, and the kept token is not among the first of them."""
    size, n = torch.ones(40), 40
    size[[20, 30]] = 8.0
    direction = torch.ones(1, 4, 1, 8)
    layer = methods.Attention(direction, direction * size[:, None] / 4)
    hidden = torch.randn(1, n, 16, generator=torch.Generator().manual_seed(0))
    result = methods.get("prumerge", neighbours=3)(methods.Inputs(hidden=hidden, vision=(layer,)))
    assert result.counts.tolist() == [3]
    taken = (result.scores[0, :3, None] * hidden[0, :3]).sum(0)
    torch.testing.assert_close(result.hidden[0, :2], hidden[0, [20, 30]] + taken)


def test_unmerge_restores_turbo():
    inputs = example("turbo", "small", 2)
    result = methods.get("turbo", r=5)(inputs)
    restored = vtkernels.unmerge_tokens(result.hidden, result.assignment)
    alone = (result.sizes == 1).gather(1, result.assignment)
    assert torch.equal(restored[alone], inputs.tokens[alone])
    assert int((~alone).sum()) >= 2 * 6
