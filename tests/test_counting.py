"""The counting rules of video methods: their examples, and what they promise."""

import doctest

import pytest
import torch

from vtkernels import testing
from vtkernels.select import counting


def test_examples():
    failures, ran = doctest.testmod(counting, extraglobs={"torch": torch})
    assert failures == 0
    assert ran >= 4


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.75, 0.99, 1.0])
def test_evs_keeps_what_a_stable_sort_would(rate):
    changed = (testing.rand(2, 5 * 12) * 3).round()
    changed[:, :12] = 255
    keep = max(12, int(60 * (1 - rate)))
    order = changed.argsort(dim=-1, descending=True, stable=True)[:, :keep]
    changed[:, :12] = -1  # what the first frame holds does not matter
    assert torch.equal(counting.evs_select(changed, 12, rate), order.sort(dim=-1).values)


@pytest.mark.parametrize("total", [0, 7, 100, 196, 5 * 196, 9999])
def test_frame_budgets_add_up_and_fit(total):
    budgets = counting.frame_budgets(testing.rand(3, 5), 196, total)
    assert (budgets.sum(-1) == min(total, 5 * 196)).all()
    assert (budgets <= 196).all()
    assert (budgets >= 0).all()


def test_frame_budgets_are_near_those_of_each_frame_by_itself():
    scores = testing.rand(4, 32)
    share = (scores / 0.01).softmax(-1)
    alone = 0.25 * 196 * (1 + share - share.mean(-1, keepdim=True))
    assert ((counting.frame_budgets(scores, 196, 32 * 49) - alone).abs() <= 1).all()
