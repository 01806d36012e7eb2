"""match_bipartite and the clustering ops on the backends of the CPU: every decision against float64."""

import functools

import pytest
import torch
from helpers import assert_contract, assert_refused, assert_same_bytes, flat, run_out, samples

from vtkernels import testing
from vtkernels.testing.diverse import signs

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, of the hostile samples
CLUSTERS = ("cluster_density_peaks", "cluster_kmeans", "cluster_kmedoids")
OPS = ("match_bipartite", *CLUSTERS)
CASES = [pytest.param(op, s, id=f"{op}-{s.name}") for op in OPS for s in testing.SAMPLES[op]()]


@samples("match_bipartite")
def test_match(backend, sample):
    outs = testing.run("match_bipartite", backend, *sample.args, **sample.kwargs)
    assert_contract("match_bipartite", outs, sample)
    testing.assert_match(outs, *sample.args, **sample.kwargs)


@samples("cluster_density_peaks")
def test_density_peaks(backend, sample):
    outs = testing.run("cluster_density_peaks", backend, *sample.args, **sample.kwargs)
    assert_contract("cluster_density_peaks", outs, sample)
    testing.assert_density_peaks(outs, *sample.args, **sample.kwargs)


@pytest.mark.parametrize(("op", "sample"), [c for c in CASES if c.values[0] in testing.STEPS])
def test_every_iteration(backend, op, sample):
    run = functools.partial(testing.run, op, backend)
    assert_contract(op, run(*sample.args, **sample.kwargs), sample)
    testing.STEPS[op](run, *sample.args, **sample.kwargs)


@pytest.mark.parametrize(("op", "sample"), CASES)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_out_variant_equals_functional(backend, op, sample, index_dtype):
    got = run_out(op, backend, sample, index_dtype)
    want = testing.run(op, backend, *sample.args, **sample.kwargs)
    assert_same_bytes([t.long() if t.dtype == index_dtype else t for t in got], want)


@pytest.mark.parametrize("op", OPS)
def test_a_row_depends_neither_on_its_neighbours_nor_on_threads(backend, op):
    features = testing.clustered(3 * 400, 48).view(3, 400, 48)
    all_rows = testing.run(op, backend, features, 9)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        again = testing.run(op, backend, features, 9)
    finally:
        torch.set_num_threads(threads)
    if backend == "cpu":  # torch's own products, which the reference uses, may depend on the number of threads
        assert_same_bytes(all_rows, again)
        for row in range(3):
            alone = testing.run(op, backend, features[row:row + 1], 9)
            assert_same_bytes([t[row:row + 1].clone() for t in flat(all_rows)], alone)


@pytest.mark.parametrize("op", ["cluster_kmeans", "cluster_kmedoids"])
def test_further_iterations_change_nothing_once_nothing_changes(backend, op):
    features = testing.clustered(200, 16)[None]
    assert_same_bytes(testing.run(op, backend, features, 6, iterations=60),
                      testing.run(op, backend, features, 6, iterations=61))


def kkz(x, clusters, metric):
    """The tokens of KKZ by all distances, in float64."""
    x = x.double()
    x = x / x.norm(dim=-1, keepdim=True) if metric == "cosine" else x
    chosen = [int(x.square().sum(-1).argmax())]
    nearest = torch.full((len(x),), torch.inf, dtype=torch.float64)
    while len(chosen) < clusters:
        products = x @ x[chosen[-1]]
        distance = 1 - products if metric == "cosine" else (x - x[chosen[-1]]).square().sum(-1)
        nearest = torch.minimum(nearest, distance)
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return chosen


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize(("n", "d", "clusters"), [(300, 64, 150), (70, 16, 70), (600, 256, 40)])
def test_the_start_of_kmeans_by_all_distances(backend, n, d, clusters, metric):
    """Signs make every distance exact; many are equal, and some tokens are. All picks, in their order."""
    features = signs(1, n, d)
    features[0, 5::9] = features[0, 3]
    if metric == "l2":
        features[0, n // 2] *= 2
        features = torch.cat([features, torch.ones(1, n, 3)], -1)  # rows of no whole vectors
    _, centres = testing.run("cluster_kmeans", backend, features, clusters, iterations=0, metric=metric)
    want = features[0, kkz(features[0], clusters, metric)]
    assert torch.equal(centres[0], want / d ** 0.5 if metric == "cosine" else want)


def test_the_start_of_kmeans_on_every_instruction_set(instruction_set):
    for metric in ("l2", "cosine"):
        test_the_start_of_kmeans_by_all_distances("cpu", 300, 64, 150, metric)
        test_the_start_of_kmeans_by_all_distances("cpu", 600, 1024, 40, metric)


def test_clusters_that_stand_apart_are_found(backend):
    """Three groups of points: whatever the method, they are the clusters."""
    group = torch.arange(60) % 3
    features = (100 * torch.eye(3)[group] + testing.rand(60, 3))[None]
    for op in CLUSTERS:
        assignment, _ = testing.run(op, backend, features, 3)
        assert len(set(zip(group.tolist(), assignment[0].tolist(), strict=True))) == 3


def test_the_sets_of_tome(backend):
    """The published matching, with a class token: even tokens merge into odd ones, the class token stays."""
    tokens = testing.clustered(197, 64)[None]
    metric = tokens / tokens.norm(dim=-1, keepdim=True)
    scores = metric[:, ::2] @ metric[:, 1::2].mT
    scores[:, 0] = -torch.inf
    best, target = scores.max(-1)
    source = best.argsort(-1, descending=True)[:, :16].sort(-1).values
    got = testing.run("match_bipartite", backend, tokens, 16, protected=1)
    assert torch.equal(got[0], 2 * source)
    assert torch.equal(got[1], 2 * target.gather(1, source) + 1)


def test_void_tokens_poison_no_centre(backend):
    features = testing.hostile_tokens(40, 24)[None]
    for metric in ("l2", "cosine"):
        _, centres = testing.run("cluster_kmeans", backend, features, 4, metric=metric)
        assert centres.isfinite().all()


X = torch.zeros(2, 9, 4)
REFUSED = [
    ("match_bipartite", (X.long(), 1), {}, "tokens", "int64"),
    ("match_bipartite", (X[0], 1), {}, "tokens", "(9, 4)"),
    ("match_bipartite", (X, 6), {}, "r", "6"),
    ("match_bipartite", (X, -1), {}, "r", "-1"),
    ("match_bipartite", (X[:, :1], 1), {}, "r", "1"),
    ("match_bipartite", (X, 1), {"stride": 1}, "stride", "1"),
    ("match_bipartite", (X, 1), {"stride": 10}, "stride", "10"),
    ("match_bipartite", (X, 0), {"protected": 10}, "protected", "10"),
    ("match_bipartite", (X, 1), {"source_bias": torch.zeros(2, 8)}, "source_bias", "8"),
    ("match_bipartite", (X, 1), {"source_bias": torch.zeros(2, 9).half()}, "source_bias", "float16"),
    ("cluster_density_peaks", (X, 10), {}, "clusters", "10"),
    ("cluster_density_peaks", (X, 2), {"neighbours": 10}, "neighbours", "10"),
    ("cluster_density_peaks", (X, 2), {"neighbours": 0}, "neighbours", "0"),
    ("cluster_kmeans", (X, 0), {}, "clusters", "0"),
    ("cluster_kmeans", (X, 2), {"iterations": -1}, "iterations", "-1"),
    ("cluster_kmeans", (X, 2), {"metric": "dot"}, "metric", "dot"),
    ("cluster_kmeans", (X, 2), {"weights": torch.zeros(2, 9).double()}, "weights", "float64"),
    ("cluster_kmeans", (X, 2), {"initial": torch.zeros(2, 2, 4).half()}, "initial", "float16"),
    ("cluster_kmedoids", (X.double(), 2), {}, "features", "float64"),
    ("cluster_kmedoids", (X, 2), {"metric": "l1"}, "metric", "l1"),
]


@pytest.mark.parametrize(("op", "args", "kwargs", "arg", "got"), REFUSED)
def test_bad_input(backend, op, args, kwargs, arg, got):
    assert_refused(op, backend, args, kwargs, arg, got)
