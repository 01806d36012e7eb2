"""merge_tokens, its way back and its gradient, on the backends of the CPU."""

import pytest
import torch
from helpers import assert_contract, assert_refused, assert_same_bytes, run_out, samples

import vtkernels
from vtkernels import _library, testing

OP = "merge_tokens"
X, GROUPS = testing.rand(2, 7, 5), torch.tensor([[0, 0, 1, -1, 2, 2, 2], [2, 1, 0, 0, -1, -1, 1]])


@samples(OP)
def test_sums(backend, sample):
    outputs = testing.run(OP, backend, *sample.args, **sample.kwargs)
    assert_contract(OP, outputs, sample)
    testing.assert_merge_tokens(outputs, *sample.args, **sample.kwargs)


@samples(OP)
def test_out_variant_equals_functional(backend, sample):
    status = torch.zeros(1, dtype=torch.int32)
    outs = run_out(OP, backend, sample, status=status)
    assert_same_bytes(outs, testing.run(OP, backend, *sample.args, **sample.kwargs))
    assert status.item() == (_library.STATUS_BAD_INDEX if "out-of-range" in sample.name else 0)


def test_a_row_does_not_depend_on_its_neighbours(backend):
    together = testing.run(OP, backend, X, GROUPS, 3)
    for b in range(2):
        assert_same_bytes([t[b:b + 1] for t in together], testing.run(OP, backend, X[b:b + 1], GROUPS[b:b + 1], 3))


def test_members_are_added_in_the_order_of_the_tokens(backend):
    """1e8 + 1 - 1e8 is 0 in float32, and 1e8 - 1e8 + 1 is 1."""
    tokens = torch.tensor([[[1e8], [1.0], [-1e8]], [[1e8], [-1e8], [1.0]]])
    merged, _ = testing.run(OP, backend, tokens, torch.zeros(2, 3, dtype=torch.int64), 1, reduce="sum")
    assert merged.flatten().tolist() == [0.0, 1.0]


def test_unmerge_gives_each_token_its_group():
    merged, _ = vtkernels.merge_tokens(X, GROUPS, 3)
    back = vtkernels.unmerge_tokens(merged, GROUPS)
    for b, row in enumerate(GROUPS.tolist()):
        for t, g in enumerate(row):
            assert torch.equal(back[b, t], merged[b, g] if g >= 0 else torch.zeros(5))


def test_the_assignment_of_a_matching_keeps_the_order():
    kept, sources, targets = torch.tensor([[0, 2, 3, 5]]), torch.tensor([[1, 4]]), torch.tensor([[5, 2]])
    assert vtkernels.merge_assignment(kept, sources, targets).tolist() == [[0, 3, 1, 2, 1, 3]]


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient(reduce, weighted):
    weights = torch.tensor([[1.0, 2, 3, 4, 0, 5, 6]]).expand(2, 7) if weighted else None

    def merge(x):
        return vtkernels.merge_tokens(x.float(), GROUPS, 3, weights=weights, reduce=reduce)[0]

    def plain(x):
        return testing.run(OP, "reference", x, GROUPS, 3, weights=weights, reduce=reduce)[0]

    ours, theirs = X.clone().requires_grad_(), X.clone().requires_grad_()
    upstream = testing.rand(2, 3, 5, seed=7)
    merge(ours).backward(upstream)
    plain(theirs).backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(("args", "kwargs", "arg", "got"), [
    ((X.long(), GROUPS, 3), {}, "tokens", "int64"),
    ((X[0], GROUPS, 3), {}, "tokens", "(7, 5)"),
    ((X, GROUPS.float(), 3), {}, "assignment", "float32"),
    ((X, GROUPS[:1], 3), {}, "assignment", "1"),
    ((X, GROUPS[:, :6], 3), {}, "assignment", "6"),
    ((X, GROUPS, -1), {}, "groups", "-1"),
    ((X, GROUPS, 3), {"weights": X[0]}, "weights", "(7, 5)"),
    ((X, GROUPS, 3), {"weights": GROUPS}, "weights", "int64"),
    ((X, GROUPS, 3), {"reduce": "max"}, "reduce", "'max'"),
])
def test_bad_arguments(backend, args, kwargs, arg, got):
    assert_refused(OP, backend, args, kwargs, arg, got)
