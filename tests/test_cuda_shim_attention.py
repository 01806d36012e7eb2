"""Matching in CUDA C++, on the CPU by the shim: see test_cuda_shim.py."""

import pytest
import torch
from fuzz import judge
from helpers import assert_same_bytes
from test_cuda_shim import LARGE_TILES, SMALL_TILES, launch, samples, shim  # noqa: F401 (shim is a fixture)

from vtkernels import _dispatch, testing
from vtkernels.testing import Sample, clustered, rand

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def match_launches(tokens, r, **_):
    """Scores, selection and lists; without anything to merge only the lists."""
    return (tokens.shape[0] * tokens.shape[1] > 0) * (3 if r else 1)


@samples("match_bipartite")
def test_match_bipartite(shim, sample):  # noqa: F811
    outs, launches = launch(shim, "match_bipartite", sample)
    testing.assert_match(outs, *sample.args, **sample.kwargs)
    assert launches == match_launches(*sample.args, **sample.kwargs)
    again, _ = launch(shim, "match_bipartite", sample, LARGE_TILES, torch.int32)
    sources, targets, scores, kept = outs
    assert_same_bytes(again, (sources.int(), targets.int(), scores, kept.int()))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("options", [{}, {"stride": 3, "protected": 7}, {"stride": 700, "protected": 698}])
def test_match_bipartite_of_long_rows(shim, dtype, options):  # noqa: F811
    """More sources than a tile and a block of lists, more targets than a tile, in place and shifted by an element."""
    tokens = clustered(2 * 700, 40, dtype=dtype).view(2, 700, 40)
    roomy = torch.zeros(2, 700, 43, dtype=dtype)
    roomy[..., 1:41] = tokens
    sample = Sample("", (tokens, 200 if "stride" not in options or options["stride"] < 9 else 1), options)
    outs, launches = launch(shim, "match_bipartite", sample, LARGE_TILES)
    testing.assert_match(outs, *sample.args, **options)
    assert launches == 3
    shifted, _ = launch(shim, "match_bipartite", sample._replace(args=(roomy[..., 1:41], sample.args[1])), SMALL_TILES)
    assert_same_bytes(shifted, outs)


def test_a_matched_row_does_not_depend_on_its_neighbours(shim):  # noqa: F811
    tokens = clustered(3 * 90, 24).view(3, 90, 24)
    tokens[1] = torch.nan
    outs, _ = launch(shim, "match_bipartite", Sample("", (tokens, 20), {}), LARGE_TILES)
    alone, _ = launch(shim, "match_bipartite", Sample("", (tokens[2:], 20), {}))
    assert_same_bytes(alone, [t[2:] for t in outs])


@pytest.mark.parametrize("op", ["match_bipartite"])
def test_drawn_calls(shim, op, monkeypatch):  # noqa: F811
    """Calls of the fuzzer: strides, offsets, empty dimensions."""
    monkeypatch.setattr(_dispatch, "refusal", lambda *_: None)  # it refuses tensors of the CPU
    for seed in range(40):
        judge.judge(op, judge.sample_of(op, seed)[0], ("reference", "cuda"))


MATCHED = {"out_sources": torch.zeros(2, 3).long(), "out_targets": torch.zeros(2, 3).long(),
           "out_scores": torch.zeros(2, 3), "out_kept": torch.zeros(2, 6).long()}


@pytest.mark.parametrize(("op", "args", "kwargs", "message"), [
    ("match_bipartite", (rand(2, 9, 4).double(), 3), MATCHED, "`tokens` is float64"),
    ("match_bipartite", (rand(9, 4), 3), MATCHED, "`tokens` is of shape \\(9, 4\\)"),
    ("match_bipartite", (rand(2, 9, 4), 6), MATCHED, "`r` is 6, allowed: 0 to 5"),
    ("match_bipartite", (rand(2, 9, 4), 3), MATCHED | {"stride": 10}, "`stride` is 10, allowed: 2 to 9"),
    ("match_bipartite", (rand(2, 9, 4), 3), MATCHED | {"stride": 1}, "`stride` is 1, allowed: 2 to 9"),
    ("match_bipartite", (rand(2, 9, 4), 3), MATCHED | {"protected": 10}, "`protected` is 10, allowed: 0 to 9"),
    ("match_bipartite", (rand(2, 9, 4), 3), MATCHED | {"source_bias": rand(2, 8)}, "`source_bias` is of size 8 in N"),
    ("match_bipartite", (rand(2, 9, 4), 3), MATCHED | {"source_bias": rand(2, 9).half()}, "`source_bias` is float16"),
    ("match_bipartite", (rand(2, 9, 4), 3), MATCHED | {"out_kept": torch.zeros(2, 5).long()}, "`out_kept` is of shape"),
    ("match_bipartite", (rand(2, 9, 4), 3), MATCHED | {"out_scores": torch.zeros(2, 3).half()},
     "`out_scores` is float16"),
])
def test_direct_calls_are_checked(shim, op, args, kwargs, message):  # noqa: F811
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.vtkernels_cuda, op).out(*args, **kwargs)
