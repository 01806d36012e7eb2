"""prototype_scores of floats where pairs of bf16 are faster: rounded products find a shortlist, exact ones decide."""

import ctypes

import pytest
import torch
from helpers import assert_same_bytes

from vtkernels import _native, testing

OP = "prototype_scores"
pytestmark = pytest.mark.parametrize("instruction_set", [i for i in _native.ISAS if "bf16" in i], indirect=True)


def scored(tokens: torch.Tensor, prototypes: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    return testing.run(OP, "cpu", tokens, prototypes, **kwargs)


def by_floats(tokens: torch.Tensor, prototypes: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from the float32 kernel."""
    library = ctypes.CDLL(str(_native.path("_C_cpu")))
    before = library.vtk_cpu_isa()
    library.vtk_cpu_limit_isa(_native.ISAS.index("avx512"))
    outputs = scored(tokens, prototypes, **kwargs)
    library.vtk_cpu_limit_isa(before)
    return outputs


def near(count: int, width: int, spread: float) -> torch.Tensor:
    """Rows around one direction: closer to each other than bf16 tells apart, when `spread` is small."""
    return testing.rand(1, width, seed=7) + spread * testing.rand(count, width, seed=8)


def assert_best(tokens: torch.Tensor, prototypes: torch.Tensor, outputs: tuple, metric: str = "cosine") -> None:
    scores, argmax = outputs
    testing.assert_scores(scores, tokens, prototypes, metric, argmax)
    exact = (tokens.double() @ prototypes.double().T) / (prototypes.double().norm(dim=-1) if metric == "cosine" else 1)
    first, second = exact.topk(2).values.T
    clear = first - second > 1e-5 * tokens.double().norm(dim=-1)
    assert clear.float().mean() > 0.5
    assert torch.equal(argmax[clear].long(), exact.argmax(-1)[clear])


@pytest.mark.parametrize(("n", "d", "p"), [(61, 1024, 64), (700, 600, 70), (33, 4200, 45), (40, 300, 1100)])
def test_the_shortlist_decides(instruction_set, n, d, p):
    tokens, prototypes = testing.clustered(n, d), testing.clustered(p, d, seed=3)
    outputs = scored(tokens, prototypes)
    assert_best(tokens, prototypes, outputs)
    floats, _ = by_floats(tokens, prototypes)
    assert not torch.equal(outputs[0], floats)  # sums of another order: it was the shortlist
    for i in (0, 13, n - 1):
        assert_same_bytes(scored(tokens[i:i + 1], prototypes), tuple(t[i:i + 1] for t in outputs))


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_prototypes_that_bf16_does_not_tell_apart(instruction_set, metric):
    rest = testing.rand(60, 512, seed=2)
    prototypes = torch.cat([rest[:25], near(9, 512, 1e-3), rest[25:]])
    tokens = near(80, 512, 0.5)
    outputs = scored(tokens, prototypes, metric=metric)
    assert_best(tokens, prototypes, outputs, metric)
    assert {int(i) for i in outputs[1]} <= set(range(25, 34))
    assert not torch.equal(outputs[0], by_floats(tokens, prototypes, metric=metric)[0])


def test_tokens_near_too_many_prototypes_are_left_to_floats(instruction_set):
    prototypes = torch.cat([testing.rand(40, 512), near(17, 512, 1e-3), testing.rand(100, 512, seed=4),
                            near(30, 512, 1e-3)])  # 47 of 187 are near; 46 would be listed
    crowded, clear = near(30, 512, 0.1), testing.rand(30, 512, seed=5)
    tokens = torch.stack([crowded, clear], 1).flatten(0, 1)
    outputs, floats = scored(tokens, prototypes), by_floats(tokens, prototypes)
    assert_same_bytes(tuple(t[::2] for t in outputs), tuple(t[::2] for t in floats))
    assert not torch.equal(outputs[0][1::2], floats[0][1::2])
    assert_best(tokens, prototypes, outputs)


def test_copies_prefer_the_lowest(instruction_set):
    prototypes = testing.rand(23, 256).repeat(8, 1)
    _, argmax = scored(testing.rand(50, 256, seed=5), prototypes)
    assert int(argmax.max()) < 23


def test_lower_prototypes_leave_a_full_list(instruction_set):
    """A list of 64 meets 33 near prototypes, and in later panels 33 that are nearer by more than the slack."""
    direction, sideways = testing.rand(1, 256), testing.rand(1, 256, seed=1)
    prototypes = testing.rand(256, 256, seed=2)
    prototypes[:33] = direction + 0.5 * sideways + 1e-3 * testing.rand(33, 256, seed=3)
    prototypes[64:97] = direction + 0.1 * sideways + 1e-3 * testing.rand(33, 256, seed=4)
    tokens = direction + 0.1 * testing.rand(20, 256, seed=5)
    scores, argmax = scored(tokens, prototypes)
    testing.assert_scores(scores, tokens, prototypes, "cosine", argmax)
    assert {int(i) for i in argmax} <= set(range(64, 97))
    assert (scores != by_floats(tokens, prototypes)[0]).float().mean() > 0.5  # sums of another order: it was the list


def test_values_without_a_bound_are_left_to_floats(instruction_set):
    tokens, prototypes = testing.rand(9, 300), testing.rand(70, 300, seed=1)
    for row, value in enumerate((torch.nan, torch.inf, -torch.inf, 3e38, 1e25)):
        tokens[row, 17] = value
    tokens[5], tokens[6], tokens[7] = 0, tokens[7] * 1e-30, tokens[7] * 1e-15
    outputs, floats = scored(tokens, prototypes), by_floats(tokens, prototypes)
    assert_same_bytes(tuple(t[:7] for t in outputs), tuple(t[:7] for t in floats))
    for value in (torch.nan, torch.inf, 1e20, 0.0, 1e-30):
        spoilt = prototypes.clone()
        spoilt[41] *= value
        assert_same_bytes(scored(tokens, spoilt), by_floats(tokens, spoilt))
    rnorm = torch.ones(70)
    rnorm[3] = torch.inf
    spoilt = {"prototype_rnorm": rnorm}
    assert_same_bytes(scored(tokens, prototypes, **spoilt), by_floats(tokens, prototypes, **spoilt))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_layouts_give_the_same_bytes(instruction_set, dtype):
    tokens, prototypes = (testing.clustered(n, 700, dtype=dtype, seed=n) for n in (90, 64))
    outputs = scored(tokens, prototypes)
    assert_best(tokens, prototypes, outputs)
    columns = [torch.stack([t, t + 1], -1).flatten(1)[:, ::2] for t in (tokens, prototypes)]
    transposed = [t.T.contiguous().T for t in (tokens, prototypes)]
    for layout in (columns, transposed):
        assert_same_bytes(scored(*layout), outputs)


def test_norms_that_differ_by_orders(instruction_set):
    prototypes = testing.rand(64, 400, seed=1) * torch.logspace(-3, 3, 64)[:, None]
    tokens = testing.rand(50, 400)
    testing.assert_scores(*scored(tokens, prototypes, metric="dot")[:1], tokens, prototypes, "dot",
                          scored(tokens, prototypes, metric="dot")[1])
    rnorm = testing.rand(64, seed=9).abs() + 0.1
    given = scored(tokens, prototypes, prototype_rnorm=rnorm)
    torch.testing.assert_close(given[0], by_floats(tokens, prototypes, prototype_rnorm=rnorm)[0], rtol=1e-4, atol=1e-5)
