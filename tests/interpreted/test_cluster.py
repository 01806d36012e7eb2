"""The Triton kernels of match_bipartite and the clustering ops in the interpreter, against float64."""

import functools

import pytest
import torch
from helpers import flat, run_out

from vtkernels import _triton, testing
from vtkernels.tuning import lookup

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, of the hostile samples
OPS = ("match_bipartite", "cluster_density_peaks", "cluster_kmeans", "cluster_kmedoids")
# The interpreter is slow: of the hostile samples one of each kind.
FEW = ("bfloat16-hostile", "float16-strided", "float32-line", "bfloat16-offset", "float32-all-void", "bfloat16-bias",
       "float32-stride-5", "float16-exact", "bfloat16-hostile-sources", "float32-one-target", "bfloat16-l2-hostile",
       "float16-l2-strided", "float32-l2-line", "bfloat16-cosine-hostile", "float16-cosine-strided",
       "bfloat16-weights-initial", "float32-cosine-weights-initial", "float32-as-many-as-tokens")


def few(op):
    small = ("float32-0x", "float32-1x")
    return [s for s in testing.SAMPLES[op]() if s.name in FEW or s.name.startswith(small)]


@pytest.fixture
def launches(monkeypatch):
    kernels, launch = [], _triton.launch
    monkeypatch.setattr(_triton, "launch", lambda kernel, *args, **options: (
        kernels.append(kernel), launch(kernel, *args, **options)))
    return kernels


def check(op, run, sample, outs):
    testing.CHECKS[op](outs, *sample.args, **sample.kwargs)
    if op in testing.STEPS:
        testing.STEPS[op](run, *sample.args, **sample.kwargs)


@pytest.mark.parametrize(("op", "sample"), [
    pytest.param(op, s, id=f"{op}-{s.name}") for op in OPS for s in few(op)])
def test_against_float64(launches, op, sample):
    outs = run_out(op, "triton", sample, torch.int32)
    assert launches or not any(t.numel() for t in flat(outs)) or 0 in sample.args[0].shape, "no kernel was launched"
    check(op, functools.partial(testing.run, op, "triton"), sample, outs)


@pytest.mark.parametrize("op", OPS)
def test_rows_longer_than_every_block(launches, monkeypatch, op):
    config = {"block_n": 16, "block_p": 16, "block_d": 16, "select_block": 16, "num_warps": 4,
              "num_stages": 1}
    monkeypatch.setattr(lookup, "config", lambda *args, **shape: config)
    options = {"iterations": 1} if op in ("cluster_kmeans", "cluster_kmedoids") else {}
    n = 39 if op == "match_bipartite" else 20  # half of the tokens are sources
    sample = testing.Sample("long", (testing.clustered(n, 24)[None], 18), options)
    run = functools.partial(testing.run, op, "triton")
    check(op, run, sample, run(*sample.args, **sample.kwargs))
    assert launches


@pytest.mark.parametrize("op", OPS)
def test_a_row_does_not_depend_on_its_neighbours(launches, op):
    features = testing.clustered(2 * 21, 24, dtype=torch.float16).view(2, 21, 24)
    options = {"iterations": 1} if op in ("cluster_kmeans", "cluster_kmedoids") else {}
    both = testing.run(op, "triton", features, 5, **options)
    for row in range(2):
        alone = testing.run(op, "triton", features[row:row + 1], 5, **options)
        for whole, part in zip(both, alone, strict=True):
            assert torch.equal(whole[row:row + 1], part)
    assert launches


def test_the_medoid_of_a_pair_is_its_first_token():
    for seed in range(3):
        pairs = torch.randn(4, 2, 37, generator=torch.Generator().manual_seed(seed))
        _, medoids = testing.run("cluster_kmedoids", "triton", pairs, 1)
        assert medoids.tolist() == [[0]] * 4
