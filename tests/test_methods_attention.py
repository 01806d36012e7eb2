"""The attention methods beyond their loops: through flex_attention, over steps, and what helps them."""

import pytest
import torch
from methods_suite import assert_close, cases, example
from torch.nn import functional as F

from vtkernels import methods, testing
from vtkernels.methods import Attention, Inputs
from vtkernels.methods.uniformer import neighbours
from vtkernels.methods.yopo import active_heads, sliced_ffn, visual_ratio

WITHOUT_PATTERN = ("distinctad", "pem", "pvc_shuffle")
OF_A_PATTERN = [case for case in cases("attention") if case.values[0] not in WITHOUT_PATTERN]


@pytest.mark.parametrize(("name", "config", "stage"), OF_A_PATTERN)
def test_compiled_it_is_flex_attention(name, config, stage, monkeypatch):
    method, inputs = methods.get(name, **config), example(name, "small", 2)
    want = method(inputs, stage=stage)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_close(method(inputs, stage=stage), want)


@pytest.mark.parametrize(("name", "field"), [("yopo", "decoder"), ("far", "decoder"), ("uniformer", "vision")])
def test_rows_that_are_missing_are_named(name, field):
    layer = Attention(testing.rand(1, 2, 3, 8), testing.rand(1, 2, 16, 8), testing.rand(1, 2, 16, 8))
    inputs = Inputs(hidden=testing.rand(1, 16, 4), grid=(1, 4, 4), **{field: (layer,)})
    config = {"window": 3} if name == "yopo" else {}
    with pytest.raises(ValueError, match=rf"{name}: `inputs.{field}\[-1\]` has 3 rows of 16 keys, allowed: 16 of both"):
        methods.get(name, **config)(inputs)


def test_re_ttention_over_its_steps():
    schedule = [step for step in range(20) if methods.get("re_ttention", step=step).full]
    assert schedule == [0, 1, 2, 3, 4, 5, 10, 15]
    inputs = example("re_ttention", "small", 2)
    full = methods.get("re_ttention", sparsity=0.2)(inputs)
    # The same queries and keys again, and a band: what was kept makes up for the rest.
    again = Inputs(decoder=inputs.decoder, cache=full.kv)
    sparse = methods.get("re_ttention", step=6, sparsity=0.2)(again)
    torch.testing.assert_close(sparse.hidden, full.hidden)
    torch.testing.assert_close(sparse.kv[1], full.kv[1] + 0.04)
    assert bool((full.kv[1] < 1).all())
    with pytest.raises(ValueError, match=r"re_ttention: `inputs.cache` has 0 tensors, allowed: the 2"):
        methods.get("re_ttention", step=6)(Inputs(decoder=inputs.decoder))


def test_falcon_writes_its_registers_back():
    inputs = example("falcon", "small", 2)
    result = methods.get("falcon", registers=4)(inputs)
    place = result.indices[..., None].expand_as(result.hidden)
    written = torch.zeros_like(inputs.hidden).scatter(1, place, result.hidden)
    assert torch.equal(written[:, 8:12], inputs.hidden[:, 8:12])
    assert not written[:, :8].any()
    with pytest.raises(ValueError, match="falcon: `registers` is 13, allowed: 1 to 12"):
        methods.get("falcon", registers=13)(inputs)
    with pytest.raises(ValueError, match=r"falcon: `images` is \(1, 1\), allowed: a sum of 3"):
        methods.get("falcon", registers=4, images=(1, 1))(inputs)


def test_neighbours_in_space_and_time():
    mask = neighbours((2, 3, 4), (1, 3, 3))
    place = torch.arange(24)
    seen = mask(place[:1], place[:1], place[:, None], place)
    assert seen[5].nonzero()[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert seen[12].nonzero()[:, 0].tolist() == [12, 13, 16, 17]
    with pytest.raises(ValueError, match=r"neighbours: `window` is \(1, 2, 3\), allowed: odd"):
        neighbours((2, 3, 4), (1, 2, 3))


def test_the_heads_that_look_at_the_image():
    layer = Attention(testing.rand(2, 4, 5, 8), testing.rand(2, 2, 20, 8, seed=1), start=3, causal=True)
    got = visual_ratio(layer, 9)
    key = layer.key.repeat_interleave(2, 1)
    hidden = torch.ones(5, 20, dtype=torch.bool).triu(16)
    weights = (layer.query @ key.mT / 8**0.5).masked_fill(hidden, -torch.inf).softmax(-1).sum(2)
    image = weights[..., 3:12].sum(-1)
    torch.testing.assert_close(got, image / (weights.sum(-1) - image))
    ratios = torch.tensor([[0.1, 0.3, 0.2], [0.3, 0.3, 0.2], [0.3, 0.3, 0.9]])
    assert active_heads(ratios, 0.2, votes=2).tolist() == [False, True, False]


def test_the_sliced_ffn():
    x, (gate, up), down = testing.rand(2, 9, 6), testing.rand(2, 12, 6, seed=1), testing.rand(6, 12, seed=2)
    got = sliced_ffn(x, gate, up, down, 2, 4, 3)
    for t in range(9):
        n = 4 if 2 <= t < 6 else 12
        want = (F.silu(x[:, t] @ gate[:n].T) * (x[:, t] @ up[:n].T)) @ down[:, :n].T
        torch.testing.assert_close(got[:, t], want)
    with pytest.raises(ValueError, match="sliced_ffn: `ratio` is 0, allowed: 1 to 12"):
        sliced_ffn(x, gate, up, down, 2, 4, 0)
