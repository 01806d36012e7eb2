"""What the cache methods have beside `run`: ZipVL's way back, and errors."""

import re
from dataclasses import replace

import pytest
import torch
from methods_suite import example

from benchmarks import loops
from vtkernels import methods
from vtkernels.methods._cache import window_scores


def test_zipvl_restores_what_its_bits_hold():
    inputs = example("zipvl", "small", 3)
    layer = inputs.decoder[-1]
    zipvl = methods.get("zipvl", tau=0.6, bits=(8, 2))
    result = zipvl(inputs)
    restored = zipvl.restore(result, torch.float32)
    errors = [(got - cache).abs().amax((1, 3)) for got, cache in zip(restored, (layer.key, layer.value), strict=True)]
    for row, count in enumerate(result.counts.tolist()):
        important = torch.zeros(layer.key.shape[2], dtype=torch.bool)
        important[result.indices[row, :count]] = True
        for error in errors:
            assert 0 < float(error[row, important].max()) < 0.03
            assert 0.1 < float(error[row, ~important].max()) < 1.5


def test_zipvl_evicted_keys_do_not_come_back():
    zipvl = methods.get("zipvl")
    with pytest.raises(ValueError, match=r"zipvl: `bits` is None, allowed: two numbers"):
        zipvl.restore(zipvl(example("zipvl", "small", 1)), torch.float32)


def test_a_row_of_the_window_does_not_see_the_rows_after_it():
    layer = example("snapkv", "small", 2).decoder[-1]
    votes = window_scores(layer, 5)
    for row in range(2):
        whole = loops.probabilities(replace(layer.last_rows(5), causal=True), row)[:, :, :-5].sum(1)
        torch.testing.assert_close(votes[row], whole.unflatten(0, (2, -1)).mean(1))


def test_redundant_keys_of_gui_kv_come_after_keys_without_a_vote():
    """Rows that look at one key each leave the others no vote at all; the quirk makes redundant ones equal to them."""
    inputs = example("gui_kv", "small", 1)
    layer = inputs.decoder[-1]
    sharp = replace(inputs, decoder=(replace(layer, query=layer.query * 1e4),))
    config = {"keep": 0.5, "window": 3, "alpha": 0.0, "kernel": 1}
    clean, quirk = (methods.get("gui_kv", **config, quirk_zeroed=q)(sharp).indices for q in (False, True))
    start, length = inputs.spans[0]
    kept = [((i >= start) & (i < start + length)).sum() for i in (clean, quirk)]
    assert kept[0] < kept[1]


def without_value(inputs):
    return replace(inputs, decoder=(replace(inputs.decoder[-1], value=None),))


def one_row(inputs):
    return replace(inputs, decoder=(inputs.decoder[-1].last_rows(1),))


@pytest.mark.parametrize(("name", "config", "change", "message"), [
    ("snapkv", {}, without_value, "`inputs.decoder[-1].value` is missing, allowed: [B, Hkv, S, dv]"),
    ("snapkv", {}, one_row, "`inputs.decoder[-1].query` has 1 rows, allowed: at least 32"),
    ("snapkv", {"keep": 3, "window": 4}, None, "`keep` is 3, 3 of 48 keys, allowed: at least the 4 of the window"),
    ("snapkv", {"kernel": 4}, None, "`kernel` is 4, allowed: an odd number from 1"),
    ("snapkv", {"pooling": "sum"}, None, "`pooling` is 'sum', allowed: 'mean', 'max'"),
    ("gui_kv", {}, without_value, "`inputs.decoder[-1].value` is missing, allowed: [B, Hkv, S, dv]"),
    ("gui_kv", {"keep": 0.1}, None, "`keep` is 0.1, 6 of 60 keys, allowed: at least the 8 of the window"),
    ("gui_kv", {}, lambda i: replace(i, hidden=i.hidden[:, 1:]), "`inputs.hidden` has 59 positions, allowed: 60"),
    ("gui_kv", {}, lambda i: replace(i, spans=((30, 20), (10, 5))), "`inputs.spans` is ((30, 20), (10, 5)), allowed: "),
    ("gui_kv", {}, lambda i: replace(i, spans=((50, 11),)), "`inputs.spans` is ((50, 11),), allowed: ascending"),
    ("scalekv", {}, without_value, "`inputs.decoder[-1].value` is missing, allowed: [B, Hkv, S, dv]"),
    ("scalekv", {}, lambda i: replace(i, grid=(1, 4, 6)), "`inputs.grid` is (1, 4, 6), allowed: (1, rows, columns) of"),
    ("scalekv", {"side": 7}, None, "`inputs.grid` is (1, 6, 6), allowed: (1, rows, columns) of the 36 rows"),
    ("scalekv", {"capacity": 15}, None, "`capacity` is 15, allowed: at least 16 (side^2)"),
    ("zipvl", {}, without_value, "`inputs.decoder[-1].value` is missing, allowed: [B, Hkv, S, dv]"),
])
def test_errors(name, config, change, message):
    inputs = example(name, "small", 2)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name}: {message}')}"):
        methods.get(name, **config)(change(inputs) if change else inputs)
