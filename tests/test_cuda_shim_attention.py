"""Matching and attention scores in CUDA C++, on the CPU by the shim: see test_cuda_shim.py."""

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


SPLIT, TILE = 1024, 64  # keys of a block of the first pass, and of the second


def attention_launches(query, key, *, lse=None, key_start=0, key_len=-1, reduce_heads="mean", logits=False,
                       layout="HND", **_):
    """Denominators, their sums over splits, scores, their sums over key heads: each where there is anything to do."""
    head, token = (1, 2) if layout == "HND" else (2, 1)
    batch, rows, keys = query.shape[0], query.shape[token], key.shape[token]
    if batch == 0 or (keys - key_start if key_len == -1 else key_len) == 0:
        return 0
    first_pass = lse is None and not logits and rows > 0
    return first_pass * (1 + (keys > SPLIT)) + 1 + (key.shape[head] > 1 and reduce_heads != "none")


def attend(shim, sample):  # noqa: F811
    (out,), launches = launch(shim, "attention_scores", sample)
    assert launches == attention_launches(*sample.args, **sample.kwargs)
    return out


@samples("attention_scores")
def test_attention_scores(shim, sample):  # noqa: F811
    out = attend(shim, sample)
    if out.numel():
        testing.assert_attention_scores(out, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("options", [
    {}, {"causal": True, "reduce_rows": "max", "reduce_heads": "none"}, {"causal": True, "causal_offset": 1000},
    {"reduce_rows": "max", "reduce_heads": "max"}, {"reduce_rows": "sum", "reduce_heads": "max", "key_start": 1000},
    {"logits": True, "causal": True, "reduce_heads": "sum"}], ids=str)
def test_keys_of_many_blocks(shim, dtype, options):  # noqa: F811
    """Three splits of the keys, the last one short, rows of several tiles, widths beyond one chunk of 128 bytes."""
    query, key = rand(1, 4, 70, 72, dtype=dtype), rand(1, 2, 2 * SPLIT + 77, 72, dtype=dtype, seed=1)
    key[0, 1, 1500] = query[0, 2, 3]  # the largest logit of a row lies in the second split
    sample = Sample("", (query, key), options)
    testing.assert_attention_scores(attend(shim, sample), *sample.args, **options)


def test_rows_without_keys_in_some_splits(shim):  # noqa: F811
    """Causal rows that see no key, one key, and all of the first split but none of the second."""
    query, key = rand(1, 2, SPLIT + 3, 8), rand(1, 1, SPLIT + 2, 8, seed=1)
    key[0, 0, 1:9] = torch.nan
    weights = torch.zeros(1, SPLIT + 3)
    for used in ([0, 1, 2], [0, 1, SPLIT], [SPLIT + 1, SPLIT + 2]):
        weights[:] = 0
        weights[0, used] = 2.0
        for rows in ("sum", "max"):
            sample = Sample("", (query, key), {"causal": True, "causal_offset": -1, "row_weights": weights.clone(),
                                               "reduce_rows": rows})
            testing.assert_attention_scores(attend(shim, sample), *sample.args, **sample.kwargs)


@pytest.mark.parametrize("dtype", FLOATS)
def test_scores_do_not_depend_on_layout_batch_or_range(shim, dtype):  # noqa: F811
    query, key = rand(3, 6, 9, 40, dtype=dtype), rand(3, 2, 300, 40, dtype=dtype, seed=1)
    query[1] = torch.nan
    for options in ({}, {"causal": True, "reduce_heads": "none"}, {"logits": True, "reduce_rows": "max"}):
        out = attend(shim, Sample("", (query, key), options))
        alone = attend(shim, Sample("", (query[2:], key[2:]), options))
        assert_same_bytes(alone, out[2:])
        shifted = [torch.cat([t, t], -1)[..., 3:43] for t in (query.roll(3, -1), key.roll(3, -1))]
        assert_same_bytes(attend(shim, Sample("", shifted, options)), out)
        swapped = [t.transpose(1, 2).contiguous() for t in (query, key)]
        assert_same_bytes(attend(shim, Sample("", swapped, options | {"layout": "NHD"})), out)
        for start, length in ((0, 64), (5, 200), (299, 1)):
            part = attend(shim, Sample("", (query, key), options | {"key_start": start, "key_len": length}))
            assert_same_bytes(part, out[..., start:start + length].contiguous())


def test_attention_scores_into_a_slice_of_a_larger_buffer(shim):  # noqa: F811
    query, key = rand(2, 4, 5, 8), rand(2, 2, 30, 8, seed=1)
    for options, shape, place in (({"reduce_heads": "none"}, (2, 6, 40), (slice(None), slice(1, 5), slice(3, 33))),
                                  ({}, (2, 40), (slice(None), slice(3, 33)))):
        buffer = torch.full(shape, 7.0)
        torch.ops.vtkernels_cuda.attention_scores.out(query, key, **options, out=buffer[place])
        assert_same_bytes(buffer[place].contiguous(), attend(shim, Sample("", (query, key), options)))
        buffer[place] = 7.0
        assert (buffer == 7).all()


def test_keys_beyond_two_to_the_31(shim, tmp_path):  # noqa: F811
    """Keys 2**30 elements apart in a sparse file."""
    size = 2**31 + 16
    file = torch.from_file(str(tmp_path / "sparse"), shared=True, size=size, dtype=torch.float16)
    near = rand(1, 1, 3, 16, dtype=torch.float16)
    far = file.as_strided((1, 1, 3, 16), (size, size, 2**30, 1))
    far.copy_(near)
    query = rand(1, 2, 4, 16, dtype=torch.float16, seed=1)
    for args in ((query, far), (far, query[:, :1])):
        want = attend(shim, Sample("", tuple(near if t is far else t for t in args), {}))
        assert_same_bytes(attend(shim, Sample("", args, {})), want)


@pytest.mark.parametrize("op", ["match_bipartite", "attention_scores"])
def test_drawn_calls(shim, op, monkeypatch):  # noqa: F811
    """Calls of the fuzzer: strides, offsets, empty dimensions."""
    monkeypatch.setattr(_dispatch, "refusal", lambda *_: None)  # it refuses tensors of the CPU
    for seed in range(40):
        judge.judge(op, judge.sample_of(op, seed)[0], ("reference", "cuda"))


MATCHED = {"out_sources": torch.zeros(2, 3).long(), "out_targets": torch.zeros(2, 3).long(),
           "out_scores": torch.zeros(2, 3), "out_kept": torch.zeros(2, 6).long()}
Q, K, OUT = rand(2, 4, 5, 8), rand(2, 2, 9, 8), {"out": torch.zeros(2, 9)}


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
    ("attention_scores", (Q.double(), K.double()), OUT, "`query` is float64"),
    ("attention_scores", (Q, K.half()), OUT, "`key` is float16"),
    ("attention_scores", (Q[0], K), OUT, "`query` is of shape \\(4, 5, 8\\)"),
    ("attention_scores", (Q, K[0]), OUT, "`key` is of shape \\(2, 9, 8\\)"),
    ("attention_scores", (Q[..., :0], K[..., :0]), OUT, "`query` is 0, allowed: at least 1"),
    ("attention_scores", (Q, K[..., :7]), OUT, "`key` is of size 7 in d"),
    ("attention_scores", (Q, K[:1]), OUT, "`key` is of size 1 in B"),
    ("attention_scores", (Q, K[:, :0]), OUT, "`key` is 0, allowed: at least 1"),
    ("attention_scores", (Q[:, :3], K), OUT, "`query` is of 3 heads, allowed: a multiple of the 2"),
    ("attention_scores", (Q, K), OUT | {"layout": "NDH"}, "`layout` is 'NDH'"),
    ("attention_scores", (Q, K), OUT | {"reduce_rows": "none"}, "`reduce_rows` is 'none'"),
    ("attention_scores", (Q, K), OUT | {"reduce_heads": "min"}, "`reduce_heads` is 'min'"),
    ("attention_scores", (Q, K), OUT | {"lse": rand(2, 4, 5), "logits": True}, "`lse` is given, allowed: None with"),
    ("attention_scores", (Q, K), OUT | {"lse": rand(2, 4, 4)}, "`lse` is of shape \\(2, 4, 4\\)"),
    ("attention_scores", (Q, K), OUT | {"lse": rand(2, 4, 5).half()}, "`lse` is float16"),
    ("attention_scores", (Q, K), OUT | {"row_weights": rand(2, 4)}, "`row_weights` is of shape \\(2, 4\\)"),
    ("attention_scores", (Q, K), OUT | {"causal_offset": 3}, "`causal_offset` is 3, allowed: None without"),
    ("attention_scores", (Q, K), OUT | {"key_start": 10}, "`key_start` is 10, allowed: 0 to 9"),
    ("attention_scores", (Q, K), OUT | {"key_start": 5, "key_len": 5}, "`key_len` is 5, allowed: -1 to 4"),
    ("attention_scores", (Q, K), OUT | {"reduce_heads": "none"}, "`out` is of shape \\(2, 9\\)"),
])
def test_direct_calls_are_checked(shim, op, args, kwargs, message):  # noqa: F811
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.vtkernels_cuda, op).out(*args, **kwargs)
