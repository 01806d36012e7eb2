"""What helps the codeword methods: IndexMark's pairs and its check; the errors that name an argument."""

import pytest
import torch

from vtkernels import methods, testing
from vtkernels.methods import Inputs
from vtkernels.methods.indexmark import green_share, pair_codewords


def greedy(codebook, neighbours):
    """The pairs by their definition, from the matrix of all cosines."""
    unit = codebook.double() / codebook.double().norm(dim=1, keepdim=True)
    cosine = (unit @ unit.T).fill_diagonal_(-2)
    free, pairs = list(range(len(codebook))), {}
    while len(free) > 1:
        candidates = []
        for a in free:
            others = sorted((b for b in free if b != a), key=lambda b, a=a: -cosine[a, b])[:neighbours]
            candidates += [(-float(cosine[a, b]), a, b) for b in others]
        for _, a, b in sorted(candidates):
            if a not in pairs and b not in pairs:
                pairs[a], pairs[b] = b, a
        free = [a for a in free if a not in pairs]
    return [pairs.get(a, a) for a in range(len(codebook))]


@pytest.mark.parametrize(("count", "neighbours"), [(40, 10), (41, 3), (2, 1), (1, 1)])
def test_codewords_are_paired_by_similarity(count, neighbours):
    codebook = testing.rand(count, 8)
    partner, green = pair_codewords(codebook, neighbours)
    assert partner.tolist() == greedy(codebook, neighbours)
    alone = partner == torch.arange(count)
    assert int(alone.sum()) == count % 2
    assert bool((green != green[partner])[~alone].all())
    assert bool(green[alone].all())


def test_equal_codewords_find_partners():
    partner, _ = pair_codewords(torch.ones(30, 4), neighbours=2)
    assert torch.equal(partner[partner], torch.arange(30))
    assert bool((partner != torch.arange(30)).all())


def test_coins_follow_their_seed():
    codebook = testing.rand(64, 8)
    first, again, other = (pair_codewords(codebook, seed=s)[1] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_marked_image_is_green():
    codebook = testing.rand(32, 8)
    partner, green = pair_codewords(codebook)
    codes = torch.arange(32).repeat(2)[None]
    mark = methods.get("indexmark", codebook=codebook, partner=partner, green=green, percentile=100.0)
    marked = mark(Inputs(hidden=codebook[codes], scores=testing.rand(1, 64)))
    assert green_share(codes, green).tolist() == [0.5]
    assert green_share(marked.assignment, green).tolist() == [1.0]


BOOK = testing.rand(5, 4)


@pytest.mark.parametrize(("name", "config", "message"), [
    ("promoe_token", {"prototypes": BOOK, "top": 6}, "`top` is 6, allowed: 1 to 5"),
    ("promoe_token", {"prototypes": BOOK, "gate": "relu"}, "`gate` is 'relu', allowed: identity, softmax, sigmoid"),
    ("promoe_expert", {"prototypes": BOOK, "capacity": 1.5}, "`keep` is 1.5, allowed: a share"),
    ("fqgan", {"codebooks": BOOK[None, :, :3]}, "`inputs.hidden` has 4 channels, allowed: 3"),
    ("mcquic", {"codebooks": (BOOK[None], BOOK[None])}, r"`descend` is None, allowed: a callable \(2 levels\)"),
    ("indexmark", {"codebook": BOOK, "partner": None, "green": None, "percentile": 101.0}, "`percentile` is 101.0"),
    ("lightgaussian_prune", {"scales": (2, 5)}, r"`scales` is \(2, 5\), allowed: channels within 4"),
    ("lightgaussian_prune", {"scales": (0, 3), "prune": 1.1}, "`prune` is 1.1, allowed: 0 to 1"),
])
def test_bad_arguments(name, config, message):
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        methods.get(name, **config)(Inputs(hidden=testing.rand(1, 8, 4), scores=testing.rand(1, 8)))
