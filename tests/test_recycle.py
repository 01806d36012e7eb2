"""Contextual and recycled tokens against loops over tokens."""

import doctest

import pytest
import torch

import vtkernels
from vtkernels import testing
from vtkernels.compact import recycle


def test_contextual_tokens_against_a_loop():
    tokens, metric = testing.rand(2, 23, 6), testing.clustered(46, 5).view(2, 23, 5)
    got, places = vtkernels.contextual_tokens(tokens, metric, 4)
    assert places.tolist() == [0, 5, 10, 15]
    for b in range(2):
        members = {t: [] for t in places.tolist()}
        for i in range(23):
            if i not in members:
                cosine = [torch.cosine_similarity(metric[b, i].double(), metric[b, t].double(), 0) for t in members]
                members[list(members)[int(torch.stack(cosine).argmax())]].append(i)
        for j, (t, own) in enumerate(members.items()):
            want = tokens[b, t] + (tokens[b, own].mean(0) if own else 0)
            torch.testing.assert_close(got[b, j], want)
    with pytest.raises(ValueError, match="`count` is 24, allowed: 1 to 23"):
        vtkernels.contextual_tokens(tokens, metric, 24)


def test_recycled_tokens_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    tokens = testing.rand(3, 40, 6)
    groups = torch.randint(-1, 5, (3, 40), generator=generator)
    groups[1][groups[1] == 3] = -1
    importance = (torch.rand(3, 40, generator=generator) * 4).round() + 1
    rows, places = vtkernels.recycle_tokens(tokens, groups, 5, importance)
    for b in range(3):
        for g in range(5):
            own = [i for i in range(40) if groups[b, i] == g]
            if not own:
                assert places[b, g] == -1
                assert not rows[b, g].any()
                continue
            assert places[b, g] == max(own, key=lambda i, b=b: (importance[b, i], -i))
            weight = importance[b, own]
            torch.testing.assert_close(rows[b, g], (weight[:, None] * tokens[b, own]).sum(0) / weight.sum())


def test_interleaving_keeps_the_order():
    first, second = testing.rand(2, 4, 3), testing.rand(2, 3, 3, seed=1)
    at = torch.tensor([[0, 2, 7, 9], [1, 3, 4, 5]]), torch.tensor([[8, 1, 2], [0, 6, 2]])
    tokens, places = vtkernels.interleave_tokens(first, at[0], second, at[1])
    for b in range(2):
        rows = sorted((int(p), which, i) for which in (0, 1) for i, p in enumerate(at[which][b]))
        assert places[b].tolist() == [r[0] for r in rows]
        assert torch.equal(tokens[b], torch.stack([(first, second)[which][b, i] for _, which, i in rows]))


@pytest.mark.parametrize("name", ["contextual_tokens", "recycle_tokens", "interleave_tokens"])
def test_docstring_examples(name):
    globs = {"torch": torch, "vtkernels": vtkernels}
    test = doctest.DocTestFinder().find(getattr(recycle, name), name, globs=globs)[0]
    failures = []
    doctest.DocTestRunner().run(test, out=failures.append)
    assert test.examples
    assert not failures, "".join(failures)
