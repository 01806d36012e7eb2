"""pool_span, shuffle_tokens and unshuffle_tokens on the backends of the CPU, with their gradients."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_contract, assert_refused, assert_same_bytes, run_out

import vtkernels
from vtkernels import testing

X = testing.rand(2, 24, 6)
OPS = ("pool_span", "shuffle_tokens", "unshuffle_tokens")
SAMPLES = [pytest.param(op, s, id=f"{op}-{s.name}") for op in OPS for s in testing.SAMPLES[op]()]


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_every_token(backend, op, sample):
    out = testing.run(op, backend, *sample.args, **sample.kwargs)
    assert_contract(op, out, sample)
    testing.CHECKS[op](out, *sample.args, **sample.kwargs)


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_out_variant_equals_functional(backend, op, sample):
    assert_same_bytes(run_out(op, backend, sample), testing.run(op, backend, *sample.args, **sample.kwargs))


@pytest.mark.parametrize("op", OPS)
def test_out_in_wider_rows(backend, op):
    x = testing.rand(2, 24, 12)
    args = (x, 4) if op == "pool_span" else (x, 6)
    want = testing.run(op, backend, *args)
    wide = torch.full((*want.shape[:2], want.shape[2] + 3), 7.0)
    testing.run(f"{op}.out", backend, *args, out=wide[..., 1:-2])
    assert torch.equal(wide[..., 1:-2], want)
    assert (wide[..., :1] == 7).all()
    assert (wide[..., -2:] == 7).all()


def test_a_row_does_not_depend_on_its_neighbours(backend):
    together = testing.run("pool_span", backend, X, 5, grid_width=8, ceil=True)
    for b in range(2):
        assert_same_bytes([together[b:b + 1]],
                          [testing.run("pool_span", backend, X[b:b + 1], 5, grid_width=8, ceil=True)])


def test_members_are_added_in_the_order_of_the_tokens(backend):
    """1e8 + 1 - 1e8 is 0 in float32, and 1e8 - 1e8 + 1 is 1."""
    tokens = torch.tensor([[[1e8], [1.0], [-1e8], [0.0]], [[1e8], [-1e8], [1.0], [0.0]]])
    for kwargs in ({"window": 4}, {"window": 2, "grid_width": 2}):
        assert testing.run("pool_span", backend, tokens, **kwargs).flatten().tolist() == [0.0, 0.25]


def test_pooling_is_that_of_torch():
    out = vtkernels.pool_span(X, 4, span_start=3, span_len=20)
    pooled = F.avg_pool1d(X[:, 3:23].mT, 4).mT
    torch.testing.assert_close(out, torch.cat([X[:, :3], pooled, X[:, 23:]], 1))
    grid = X.view(2, 4, 6, 6).permute(0, 3, 1, 2)
    want = F.avg_pool2d(grid, (2, 3)).flatten(2).mT
    torch.testing.assert_close(vtkernels.pool_span(X, 2, window_width=3, grid_width=6), want)
    ragged = F.avg_pool2d(grid, (3, 4), ceil_mode=True, count_include_pad=False).flatten(2).mT
    torch.testing.assert_close(vtkernels.pool_span(X, 3, window_width=4, grid_width=6, ceil=True), ragged)


def test_positions_are_pooled_as_the_tokens():
    ids = torch.randint(0, 10**6, (3, 2, 37), generator=torch.Generator().manual_seed(0))
    for kwargs in ({"span_start": 2, "span_len": 32}, {"grid_width": 5, "span_start": 1, "span_len": 35, "ceil": True},
                   {"grid_width": 4, "window_width": 3, "span_len": 32, "ceil": True}):
        places = {name: value for name, value in kwargs.items() if name != "ceil"}
        groups = testing.pool.oracle_windows(37, 4, **places)
        mean = [[[sum(r[t] for t in g) // len(g) for g in groups] for r in axis] for axis in ids.tolist()]
        assert vtkernels.pool_positions(ids, 4, **kwargs).tolist() == mean
        first = vtkernels.pool_positions(ids.int(), 4, reduce="first", **kwargs)
        assert first.tolist() == [[[r[g[0]] for g in groups] for r in axis] for axis in ids.tolist()]
        assert first.dtype == torch.int32
    negative = vtkernels.pool_positions(torch.tensor([-3, -2, -1, 0]), 2)
    assert negative.tolist() == [-2, 0]  # without the fraction
    assert vtkernels.pool_positions(torch.zeros(2, 0, dtype=torch.int64), 3).shape == (2, 0)


@pytest.mark.parametrize(("ids", "kwargs", "arg"), [
    (torch.zeros(2, 8), {}, "position_ids"),
    (torch.tensor(3), {}, "position_ids"),
    (torch.arange(8), {"reduce": "last"}, "reduce"),
    (torch.arange(9), {}, "window"),
])
def test_bad_positions(ids, kwargs, arg):
    with pytest.raises((ValueError, TypeError), match=f"pool_positions: `{arg}` is .*allowed: "):
        vtkernels.pool_positions(ids, 4, **kwargs)


@pytest.mark.parametrize("kwargs", [
    {"window": 4, "span_start": 2, "span_len": 20}, {"window": 5, "ceil": True},
    {"window": 3, "window_width": 2, "grid_width": 4, "span_start": 1, "span_len": 20, "ceil": True},
    {"window": 1}, {"window": 2, "span_start": 24},
])
def test_gradient_of_pooling(kwargs):
    ours, theirs = X.clone().requires_grad_(), X.clone().requires_grad_()
    out = vtkernels.pool_span(ours, **kwargs)
    upstream = testing.rand(*out.shape, seed=5)
    out.backward(upstream)
    testing.run("pool_span", "reference", theirs, **kwargs).backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("order", ["window", "window_transposed", "channel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_shuffle_is_the_way_back(order, dtype):
    x = X.to(dtype, copy=True).requires_grad_()
    coarse = vtkernels.shuffle_tokens(x, 6, order=order)
    assert torch.equal(vtkernels.unshuffle_tokens(coarse, 6, order=order), x)
    upstream = testing.rand(*coarse.shape, dtype=dtype, seed=5)
    coarse.backward(upstream)
    assert torch.equal(x.grad, vtkernels.unshuffle_tokens(upstream, 6, order=order))
    y = coarse.detach().requires_grad_()
    vtkernels.unshuffle_tokens(y, 6, order=order).backward(x.detach())
    assert torch.equal(y.grad, coarse)


def internvl(x, version):
    """The pixel shuffle of InternVL at scale 0.5, by its steps."""
    n, h, w, c = x.shape
    x = x.view(n, h, w // 2, c * 2).permute(0, 2, 1, 3).contiguous().view(n, w // 2, h // 2, c * 4)
    return (x if version == 1 else x.permute(0, 2, 1, 3)).flatten(1, 2)


def test_the_orders_are_those_of_the_models():
    grid = X.view(2, 4, 6, 6)
    assert torch.equal(vtkernels.shuffle_tokens(X, 6, order="window"), internvl(grid, 2))
    assert torch.equal(vtkernels.shuffle_tokens(X, 6, order="window_transposed"), internvl(grid, 1))
    unshuffled = F.pixel_unshuffle(grid.permute(0, 3, 1, 2), 2).flatten(2).mT
    assert torch.equal(vtkernels.shuffle_tokens(X, 6, order="channel"), unshuffled)
    neighbours = torch.cat([grid[:, y::2, x::2] for y in (0, 1) for x in (0, 1)], -1).flatten(1, 2)
    assert torch.equal(vtkernels.shuffle_tokens(X, 6), neighbours)


@pytest.mark.parametrize(("op", "args", "kwargs", "arg", "got"), [
    ("pool_span", (X.long(), 2), {}, "tokens", "int64"),
    ("pool_span", (X[0], 2), {}, "tokens", "(24, 6)"),
    ("pool_span", (X, 0), {}, "window", "0"),
    ("pool_span", (X, 5), {}, "window", "5, with 24"),
    ("pool_span", (X, 5), {"grid_width": 4, "window_width": 2}, "window", "5, with 6"),
    ("pool_span", (X, 3), {"grid_width": 4}, "window", "3, with 4"),
    ("pool_span", (X, 3), {"grid_width": 4, "window_width": 3}, "window_width", "3, with 4"),
    ("pool_span", (X, 2), {"grid_width": 5}, "grid_width", "5"),
    ("pool_span", (X, 2), {"grid_width": -1}, "grid_width", "-1"),
    ("pool_span", (X, 2), {"window_width": 2}, "window_width", "2"),
    ("pool_span", (X, 2), {"window_width": -2, "grid_width": 4}, "window_width", "-2"),
    ("pool_span", (X, 2), {"span_start": 25}, "span_start", "25"),
    ("pool_span", (X, 2), {"span_start": 20, "span_len": 6}, "span_len", "6"),
    ("shuffle_tokens", (X[0], 6), {}, "tokens", "(24, 6)"),
    ("shuffle_tokens", (X, 5), {}, "grid_width", "5"),
    ("shuffle_tokens", (X, 0), {}, "grid_width", "0"),
    ("shuffle_tokens", (X, 6, 0), {}, "factor", "0"),
    ("shuffle_tokens", (X, 6, 3), {}, "tokens", "24"),
    ("shuffle_tokens", (X, 6), {"order": "pixel"}, "order", "'pixel'"),
    ("unshuffle_tokens", (X, 6), {}, "tokens", "6"),
    ("unshuffle_tokens", (X[..., :4], 10), {}, "tokens", "24"),
    ("unshuffle_tokens", (X, 6, -1), {}, "factor", "-1"),
    ("unshuffle_tokens", (X, 6), {"order": ""}, "order", "''"),
])
def test_bad_arguments(backend, op, args, kwargs, arg, got):
    assert_refused(op, backend, args, kwargs, arg, got)
