"""select_diverse on the backends of the CPU: every pick attains the maximum, exactly where arithmetic is exact."""


import pytest
import torch
from helpers import assert_contract, assert_refused, run_out, samples

from vtkernels import _library, testing
from vtkernels.testing.diverse import oracle_diverse, signs

OP = "select_diverse"
OBJECTIVES = ("max_min", "max_sum", "dpp")


@samples(OP)
def test_picks(backend, sample):
    outs = testing.run(OP, backend, *sample.args, **sample.kwargs)
    assert_contract(OP, outs, sample)
    testing.assert_diverse(outs, *sample.args, **sample.kwargs)
    if "exact" in sample.name:
        assert outs[0].tolist() == oracle_diverse(*sample.args, **sample.kwargs)


@samples(OP)
def test_out_variant_equals_functional(backend, sample):
    status = torch.zeros(1, dtype=torch.int32)
    outs = run_out(OP, backend, sample, torch.int32, status=status)
    for out, want in zip(outs, testing.run(OP, backend, *sample.args, **sample.kwargs), strict=True):
        assert out.tolist() == want.tolist()
    assert status.item() == (_library.STATUS_BAD_INDEX if "bad-seeds" in sample.name else 0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_row_does_not_depend_on_its_neighbours(backend, objective):
    x = testing.clustered(9 * 150, 40).view(9, 150, 40)
    together = testing.run(OP, backend, x, 40, objective=objective)
    for b in (0, 4, 8):
        alone = testing.run(OP, backend, x[b:b + 1], 40, objective=objective)
        assert torch.equal(alone[0], together[0][b:b + 1])
        again = testing.run(OP, backend, x[b:b + 1], 40, objective=objective)
        assert torch.equal(alone[0], again[0])


@pytest.mark.parametrize(("n", "d", "k"), [(700, 64, 300), (387, 257, 387)])
def test_the_lazy_comparisons_of_max_min_change_nothing(n, d, k):
    """Blocks, candidates and stale bounds on the CPU, with crowds of ties and without."""
    exact = signs(1, n, 64)
    exact[0, 5::9] = exact[0, 3]
    for x in (exact, exact[:, :, ::4].half()):
        assert testing.run(OP, "cpu", x, k)[0].tolist() == oracle_diverse(x, k)
    for x in (testing.clustered(n, d)[None], testing.rand(1, n, d), testing.rand(1, n, d).cumsum(1)):
        testing.assert_diverse(testing.run(OP, "cpu", x, k), x, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wide_tokens_whose_first_dimensions_mislead(dtype):
    """max_min on the CPU looks at some dimensions first. They may be alike, zero, or say the opposite of the rest."""
    x = signs(1, 300, 1024)
    x[0, 5::9], x[0, 7::50] = x[0, 3], -x[0, 4]
    alike, opposite = x.clone(), x.clone()
    alike[..., :256] = 1
    opposite[0, ::2, :256] = x[0, 1::2, :256]
    for features in (x, alike, opposite):
        assert testing.run(OP, "cpu", features.to(dtype), 120)[0].tolist() == oracle_diverse(features, 120)
    zero = testing.clustered(300, 1040, dtype=dtype)
    zero[:, :256] = 0
    scaled = testing.clustered(300, 1024, dtype=dtype)
    scaled[::7] *= 1e-17
    scaled[1::7] *= 1e15
    scaled[2], scaled[3, 5], scaled[4] = float("inf"), float("nan"), 0
    for features in (zero[None], scaled[None], zero[None, :, :1030].float()):
        testing.assert_diverse(testing.run(OP, "cpu", features, 120), features, 120)


def test_every_instruction_set(instruction_set):
    for sample in testing.SAMPLES[OP]():
        outs = testing.run(OP, "cpu", *sample.args, **sample.kwargs)
        testing.assert_diverse(outs, *sample.args, **sample.kwargs)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for objective in OBJECTIVES:
            x = testing.clustered(260, 1101, dtype=dtype)[None]
            testing.assert_diverse(testing.run(OP, "cpu", x, 50, objective=objective), x, 50, objective=objective)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_number_of_threads_changes_nothing(objective):
    x, threads = testing.clustered(400, 130)[None], torch.get_num_threads()
    orders = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            orders.append(testing.run(OP, "cpu", x, 120, objective=objective)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(orders[1], orders[0])
    assert torch.equal(orders[2], orders[0])


def test_the_first_pick_of_max_min_is_the_token_whose_nearest_is_farthest(backend):
    for seed in range(4):
        x = testing.clustered(400, 16, centres=90, seed=seed)[None]
        order, _ = testing.run(OP, backend, x, 1)
        testing.assert_diverse((order, order), x, 1)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_norms_that_float32_can_just_hold(backend, objective):
    x = testing.rand(1, 30, 16)
    x[0, ::3] *= 1e18
    x[0, 1::3] *= 1e-18
    testing.assert_diverse(testing.run(OP, backend, x, 16, objective=objective), x, 16, objective=objective)


X = testing.rand(2, 20, 8)
DPP = {"objective": "dpp"}


@pytest.mark.parametrize(("args", "kwargs", "arg", "got"), [
    ((X, 21), {}, "k", "21"),
    ((X, -1), {}, "k", "-1"),
    ((X[0], 1), {}, "features", "(20, 8)"),
    ((X.double(), 1), {}, "features", "float64"),
    ((X, 1), {"objective": "max"}, "objective", "'max'"),
    ((X, 1), {"relevance": torch.ones(2, 20)}, "relevance", "given"),
    ((X, 1), {**DPP, "relevance": torch.ones(2, 20).half()}, "relevance", "float16"),
    ((X, 1), {**DPP, "relevance": torch.ones(20)}, "relevance", "(20,)"),
    ((X, 1), {**DPP, "relevance": torch.ones(1, 20)}, "relevance", "1"),
    ((X, 1), {**DPP, "relevance": torch.ones(2, 19)}, "relevance", "19"),
    ((X, 1), {**DPP, "seeds": torch.zeros(2, 1, dtype=torch.int64)}, "seeds", "given"),
    ((X, 1), {"seeds": torch.zeros(2, 2, dtype=torch.int64)}, "seeds", "2"),
    ((X, 1), {"seeds": torch.zeros(2, 1)}, "seeds", "float32"),
    ((X, 1), {"seeds": torch.zeros(2, dtype=torch.int64)}, "seeds", "(2,)"),
    ((X, 1), {"seeds": torch.zeros(3, 1, dtype=torch.int64)}, "seeds", "3"),
])
def test_bad_arguments(backend, args, kwargs, arg, got):
    assert_refused(OP, backend, args, kwargs, arg, got)


def test_a_status_word_of_another_dtype_is_refused(backend):
    outs = {name: torch.empty(2, 3, dtype=torch.int64) for name in _library.OUT_ARGS[OP]}
    assert_refused(f"{OP}.out", backend, (X, 3), {**outs, "status": torch.zeros(1)}, "status", "float32")


def test_gradients_are_refused():
    import vtkernels

    with pytest.raises(RuntimeError, match="requires a gradient, which this op does not have"):
        vtkernels.select_diverse(X.clone().requires_grad_(), 2)
