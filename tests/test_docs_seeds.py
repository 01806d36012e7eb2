"""What docs/seeds.md says of the four systems runs, and their helpers do what it says."""

import re
from pathlib import Path

import pytest
import torch

from vtkernels import methods, testing
from vtkernels.methods import Inputs
from vtkernels.methods.mfm import disc
from vtkernels.methods.msvmamba import scan_orders, unscan

PAGE = (Path(__file__).parents[1] / "docs/seeds.md").read_text()


def test_the_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 4
    scope: dict = {}
    for block in blocks:
        exec(compile(block, "docs/seeds.md", "exec"), scope)


def test_the_page_is_about_methods_of_its_family():
    named = re.findall(r'methods\.get\("(\w+)"', PAGE)
    assert {"mavis", "mfm", "msvmamba", "patnet"} == set(named) - {"divprune"} <= set(methods.list("other"))


def test_unscan_is_the_way_back():
    """Three readings of the same map sum to three times the map, and the half map stands at the middle of its cells."""
    tokens = testing.rand(2, 6 * 8, 5)
    small = tokens.view(2, 3, 2, 4, 2, 5).mean((2, 4))  # [2, 3, 4, 5]
    scanned = methods.get("msvmamba")(Inputs(hidden=tokens, grid=(1, 6, 8))).hidden
    full = unscan(scanned, 6, 8)
    want = torch.nn.functional.interpolate(3 * small.permute(0, 3, 1, 2), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(full, want.flatten(2).transpose(1, 2))
    with pytest.raises(ValueError, match="unscan: `scanned` has 36 tokens, allowed: 48"):
        unscan(scanned, 8, 8)
    with pytest.raises(ValueError, match=r"msvmamba: `inputs.grid` is \(1, 16, 3\), allowed: .* both even"):
        methods.get("msvmamba")(Inputs(hidden=tokens, grid=(1, 16, 3)))


def test_scan_orders():
    assert scan_orders(2, 3).tolist() == [[5, 4, 3, 2, 1, 0], [0, 3, 1, 4, 2, 5], [5, 2, 4, 1, 3, 0]]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10)])
def test_the_disc_lies_around_frequency_zero(height, width):
    y, x = torch.meshgrid(torch.fft.fftfreq(height) * height, torch.fft.fftfreq(width) * width, indexing="ij")
    assert torch.equal(disc(height, width, 2.5), y.square() + x.square() <= 2.5**2)


def test_mavis_has_the_schedule_of_its_method():
    mavis = methods.get("mavis", method="fastv", config={"keep": 0.25, "layer": 3})
    assert mavis.stages == methods.get("fastv", keep=0.25, layer=3).stages
    with pytest.raises(ValueError, match=r"fastv: `inputs.decoder` is missing"):
        mavis(Inputs(hidden=testing.rand(1, 8, 4)))
    with pytest.raises(ValueError, match="get: `name` is 'none', allowed"):
        methods.get("mavis", method="none")(Inputs(hidden=testing.rand(1, 8, 4)))


def test_patnet_refuses_what_has_no_spread():
    with pytest.raises(ValueError, match=r"patnet: `inputs.hidden` is of shape \(1, 1, 4\), allowed: 2 tokens and 3"):
        methods.get("patnet", weight=torch.ones(3, 2), bias=torch.ones(3))(Inputs(hidden=testing.rand(1, 1, 4)))
