"""The CUDA sources and their registration, compiled for the CPU by the shim in cuda_shim/ and run against the oracles.

Same source, its threads run as fibers (cuda_shim/lanes.h): it shows wrong arithmetic, indexing and metadata; under a
sanitizer, with threads of the CPU, overruns and missing barriers. It says nothing about the GPU's memory model, races
between blocks, tensor cores or speed. One long file, because every op shares `launch` and what it poisons.
"""

import ctypes
import fcntl
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_shim import build
from fuzz import judge
from fuzz.draws import Draws
from fuzz.test_fuzz import SEEDS
from helpers import assert_same_bytes, flat, gather_status, poison

import vtkernels
from vtkernels import _dispatch, _library, testing
from vtkernels.compact.quantize_kv import reference
from vtkernels.testing import Sample, clustered, paged, rand

if shutil.which("g++") is None and os.environ.get("CI") != "true":
    pytest.skip("g++ is missing", allow_module_level=True)

INF = float("inf")
BEHIND = 0xB5
LARGE_TILES, SMALL_TILES = 1, 1000  # multiprocessors that the shim reports: few rows fill one, none fill a thousand


@pytest.fixture(scope="session")
def shim(tmp_path_factory) -> ctypes.CDLL:
    """Compiled by the worker that is the first to need it."""
    ready = os.environ.get("VTKERNELS_TEST_SHIM")  # of a run of mutants, which has compiled its defect
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with open(folder / "cuda_shim.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = Path(ready or build.library(folder / "cuda_shim"))
        if not path.exists():
            build.torch_library(path.parent)
    torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))


def launch(shim, op, sample, multiprocessors=SMALL_TILES, index_dtype=torch.int64, fill=None, **extra):
    """One call into poisoned buffers, those of floats full of `fill` or NaN, and how many kernels it launched."""
    specs = _library.CONTRACTS[op](*sample.args, **sample.kwargs)
    names = _library.OUT_ARGS[op]
    outs = roomy(poison(specs if len(names) > 1 else (specs,)[:len(names)],
                        index_dtype if "gather" not in op else None))
    for out in flat(outs):
        if fill is not None and out.is_floating_point():
            out.fill_(fill)
    shim.shim_configure(len(sample.name), multiprocessors)
    before = shim.shim_launches()
    getattr(getattr(torch.ops, _library.CUDA_NAMESPACE), op).out(
        *sample.args, **sample.kwargs, **dict(zip(names, outs, strict=True)), **extra)
    for out in flat(outs):
        memory = torch.empty(0, dtype=torch.uint8).set_(out.untyped_storage())
        assert (memory[out.nbytes:] == BEHIND).all(), "bytes behind an output were written"
    return outs, shim.shim_launches() - before


def roomy(buffers):
    """The same buffers, each with bytes behind its end that are nobody's."""
    if not isinstance(buffers, torch.Tensor):
        return type(buffers)(roomy(b) for b in buffers)
    memory = torch.full((buffers.nbytes + 64,), BEHIND, dtype=torch.uint8)
    return memory[:buffers.nbytes].view(buffers.dtype).view(buffers.shape).copy_(buffers)


def samples(op, keep=lambda name: True):
    return pytest.mark.parametrize("sample", [s for s in testing.SAMPLES[op]() if keep(s.name)], ids=lambda s: s.name)


def word():
    return torch.zeros(1, dtype=torch.int32)


@samples("prototype_scores")
def test_prototype_scores(shim, sample):
    (scores, argmax), _ = launch(shim, "prototype_scores", sample)
    testing.assert_prototype_scores((scores, argmax), *sample.args, **sample.kwargs)
    again, _ = launch(shim, "prototype_scores", sample, LARGE_TILES, torch.int32)
    assert_same_bytes(again, (scores, argmax.int()))


@samples("select_topk", lambda name: not re.search("-k[2-57-9]$|smallest-n[47]|ties.*k(0|256)", name))
def test_select_topk(shim, sample):
    dtype = torch.int32 if len(sample.name) % 2 else torch.int64
    (out,), launches = launch(shim, "select_topk", sample, index_dtype=dtype)
    assert out.dtype == dtype
    assert out.tolist() == testing.oracle_topk(*sample.args, **sample.kwargs)
    assert launches == (out.numel() > 0) * (1 + (sample.kwargs.get("order") == "score"))


@pytest.mark.parametrize("largest", [True, False])
def test_masked_selection_of_values_at_the_edge(shim, largest):
    """Every count, so that NaN is the last one kept, beside excluded and protected tokens of any value."""
    scores = testing.select.EDGE.repeat(1, 2)
    drawn = rand(1, 26)
    for k in range(27):
        sample = Sample("", (scores, k), {"largest": largest, "protected": drawn > 0.8, "excluded": drawn.abs() < 0.4,
                                          "order": "score" if k % 2 else "index"})
        (out,), _ = launch(shim, "select_topk", sample)
        assert out.tolist() == testing.oracle_topk(*sample.args, **sample.kwargs)


@samples("select_topk_varlen")
def test_select_topk_varlen(shim, sample):
    status = torch.tensor([64], dtype=torch.int32)
    dtype = torch.int32 if len(sample.name) % 2 else torch.int64
    outs, _ = launch(shim, "select_topk_varlen", sample, index_dtype=dtype, status=status)
    testing.assert_topk_varlen(outs, *sample.args, **sample.kwargs)
    assert status.item() == 64 | testing.oracle_topk_varlen(*sample.args, **sample.kwargs)[2]


@samples("select_threshold")
def test_select_threshold(shim, sample):
    dtype = torch.int32 if len(sample.name) % 2 else torch.int64
    outs, launches = launch(shim, "select_threshold", sample, index_dtype=dtype)
    testing.assert_threshold(outs, *sample.args, **sample.kwargs)
    assert launches == 1 + (len(outs[1]) > 0)


@samples("select_top_p")
def test_select_top_p(shim, sample):
    dtype = torch.int32 if len(sample.name) % 2 else torch.int64
    outs, launches = launch(shim, "select_top_p", sample, index_dtype=dtype)
    testing.assert_top_p(outs, *sample.args, **sample.kwargs)
    assert launches == 1 + (len(outs[1]) > 0)


def test_ragged_rows_beyond_a_block(shim):
    """Rows that do not fit the registers, and more rows than two rounds of the block that adds up their counts."""
    long = torch.cat([rand(1, 20000, seed=s).softmax(-1) for s in range(2)])
    long[1, ::3] = -INF
    for op, args, kwargs in (("select_top_p", (long, 0.6), {}), ("select_top_p", (long, 1.0), {"min_keep": 19990}),
                             ("select_threshold", (long, 1e-4), {"min_keep": 15000, "largest": False})):
        outs, launches = launch(shim, op, Sample("", args, kwargs))
        testing.CHECKS[op](outs, *args, **kwargs)
        assert launches == 2
    rows = rand(600, 3).abs()
    for op, limit in (("select_top_p", 0.5), ("select_threshold", 0.7)):
        outs, launches = launch(shim, op, Sample("", (rows, limit), {}))
        testing.CHECKS[op](outs, rows, limit)
        assert launches == 2


@samples("temporal_scores")
def test_temporal_scores(shim, sample):
    (out,), launches = launch(shim, "temporal_scores", sample)
    testing.assert_temporal(out, *sample.args, **sample.kwargs)
    assert launches == (out.numel() > 0)


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 1500), (torch.float32, 4099), (torch.bfloat16, 8200)])
@pytest.mark.parametrize("metric", ["cosine", "l1", "l2"])
def test_temporal_scores_of_wide_rows(shim, metric, dtype, width):
    """A row of a whole block, in registers and too wide for them."""
    video = clustered(2 * 3, width, dtype=dtype).view(1, 3, 2, width)
    (out,), _ = launch(shim, "temporal_scores", Sample("", (video,), {"metric": metric}))
    testing.assert_temporal(out, video, metric)


@pytest.mark.parametrize("width", [40, 700])
def test_temporal_scores_do_not_depend_on_the_chunk(shim, width):
    """All frames by one block, then eight of them; whole units and single elements."""
    video = clustered(20 * 20, width).view(1, 20, 20, width)
    padded = torch.zeros(1, 20, 20, width + 3)
    padded[..., 1:-2] = video
    (want,), _ = launch(shim, "temporal_scores", Sample("", (video,), {}), 1)
    (chunked,), _ = launch(shim, "temporal_scores", Sample("", (video,), {}), SMALL_TILES)
    (single,), _ = launch(shim, "temporal_scores", Sample("", (padded[..., 1:-2],), {}), SMALL_TILES)
    testing.assert_temporal(want, video)
    assert_same_bytes(chunked, want)
    assert_same_bytes(single, want)


def test_selected_tokens_are_ranked_beyond_a_tile(shim):
    """More of them than the blocks of a row hold at once, and more segments than two rounds of the planning block."""
    scores = (rand(1, 20000) * 50).round()
    dense = Sample("", (scores, 16500), {"order": "score", "largest": False})
    (out,), _ = launch(shim, "select_topk", dense)
    assert out.tolist() == testing.oracle_topk(*dense.args, **dense.kwargs)
    lengths = torch.cat([torch.arange(600) % 3, torch.tensor([1000])])
    cu = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    k = (lengths * 0.7).ceil().int()
    packed = Sample("", (scores[0, :int(cu[-1])], cu, k, int(k.sum())), {
        "order": "score", "protected": rand(int(cu[-1])) > 1, "excluded": rand(int(cu[-1]), seed=1) > 1})
    outs, _ = launch(shim, "select_topk_varlen", packed)
    testing.assert_topk_varlen(outs, *packed.args, **packed.kwargs)


@pytest.mark.parametrize("op", ["gather_tokens", "gather_kv"])
def test_gather(shim, op):
    for sample in testing.SAMPLES[op]():
        status = word()
        (outs,), _ = launch(shim, op, sample, status=status)
        testing.CHECKS[op](outs, *sample.args, **sample.kwargs)
        assert status.item() == gather_status(op, sample), sample.name


@samples("gather_kv_inplace")
def test_gather_kv_inplace(shim, sample):
    (kv, indices), status = sample.args, word()
    changed = [testing.copied(t) for t in kv]
    _, launches = launch(shim, "gather_kv_inplace", sample._replace(args=(changed, indices)), status=status)
    assert launches == (indices.numel() > 0)
    testing.assert_gather_kv_inplace(changed, kv, indices, **sample.kwargs)
    assert status.item() == gather_status("gather_kv_inplace", sample)


@samples("rotate_keys")
def test_rotate_keys(shim, sample):
    (out,), launches = launch(shim, "rotate_keys", sample)
    assert launches == (out.numel() > 0)
    testing.assert_rotate_keys(out, *sample.args, **sample.kwargs)
    if sample.args[0].stride(-1) == 1 and "hostile" not in sample.name:
        keys = testing.copied(sample.args[0])
        torch.ops.vtkernels_cuda.rotate_keys.out(keys, *sample.args[1:], **sample.kwargs, out=keys)
        assert_same_bytes(keys, out)


def test_status_is_set_where_no_row_has_bytes(shim):
    status = torch.tensor([64], dtype=torch.int32)
    launch(shim, "gather_tokens", Sample("", ([rand(1, 3, 0)], torch.tensor([[3]])), {}), status=status)
    assert status.item() == 64 | _library.STATUS_BAD_INDEX


@pytest.mark.parametrize("offset", range(9))
def test_gather_at_every_alignment(shim, offset):
    x = torch.arange(2 * 20 * 50, dtype=torch.uint8).view(2, 20, 50)
    idx = torch.tensor([[1, 19], [0, 7]])
    buffer = torch.zeros(2, 2, 64, dtype=torch.uint8)
    out = [buffer[..., 3:19], buffer[..., 32:48]]
    torch.ops.vtkernels_cuda.gather_tokens.out([x[..., offset:offset + 16], x[..., 16:32]], idx, out=out)
    assert_same_bytes(out, [torch.stack([t[b, idx[b]] for b in range(2)]) for t in (x[..., offset:offset + 16],
                                                                                 x[..., 16:32])])
    assert buffer[..., :3].count_nonzero() + buffer[..., 19:32].count_nonzero() + buffer[..., 48:].count_nonzero() == 0


def test_six_axes_and_more_layouts_than_a_launch_holds(shim):
    many = rand(3, 4, 2, 20, 5, 6, 4)[:, ::2, :, :, ::2, ::3, ::2]
    tensors = [many, *(rand(2, 20, width) for width in range(1, 9))]
    dims = [3, *(1,) * 8]
    sample = Sample("", (tensors, torch.tensor([[3, 0], [19, 20]])), {"token_dims": dims})
    (outs,), launches = launch(shim, "gather_tokens", sample)
    for t, d, out in zip(tensors, dims, outs, strict=True):
        np.testing.assert_array_equal(testing.bytes_of(out), testing.oracle_rows(t, sample.args[1], d - 1, d))
    assert launches == 2


@pytest.mark.parametrize(("count", "launches"), [(1, 1), (64, 1), (168, 1), (169, 2)])
def test_launches_of_a_gather(shim, count, launches):
    kv = [rand(1, 2, 9, 4, seed=s) for s in range(count)]
    (outs,), launched = launch(shim, "gather_kv", Sample("", (kv, torch.tensor([[8, 2]])), {}))
    assert launched == launches
    assert_same_bytes(outs, [t[:, :, [8, 2]] for t in kv])


def test_compact_kv_paged(shim):
    for sample in testing.SAMPLES["compact_kv_paged"]():
        status = word()
        before = [testing.bytes_of(t).copy() for t in sample.args[0]]
        dtype = torch.int32 if len(sample.name) % 2 else torch.int64
        outs, launches = launch(shim, "compact_kv_paged", sample, index_dtype=dtype, status=status)
        testing.assert_compact_kv_paged(outs, *sample.args, before=before, **sample.kwargs)
        assert status.item() == paged.compact_result(*sample.args, **sample.kwargs).status, sample.name
        moves = sample.args[0][0].numel() > 0 and sample.args[3].shape[1] > 0
        assert launches == (0 if len(sample.args[1]) == 0 else 2 + moves), sample.name


@pytest.mark.parametrize("in_place", [True, False])
def test_compaction_of_long_rows_and_many_pools(shim, in_place):
    """More tokens than a tile, more of them than threads, more layouts and pools than a launch holds."""
    pools = [paged.pool(90, 4, 1, 4, seed=s) for s in range(330)]
    pools += [paged.pool(90, 4, 3, 2 * w, dtype=torch.int16)[..., w:] for w in range(1, 9)]
    pools += [paged.pool(90, 4, 2, 1500, seed=1)]
    table = torch.randperm(90, generator=torch.Generator().manual_seed(1)).int()[None]
    kept = torch.arange(300)[torch.arange(300) % 7 > 4][None]
    kwargs = {} if in_place else {"dst_block_table": table[:, 75:]}
    kept = kept if in_place else kept[:, -60:]
    sample = Sample("", (pools, table[:, :75], paged.ints(300), kept), kwargs)
    before = [testing.bytes_of(t).copy() for t in pools]
    outs, launches = launch(shim, "compact_kv_paged", sample)
    testing.assert_compact_kv_paged(outs, *sample.args, before=before, **kwargs)
    assert launches == 2 + 3


def test_watermark(shim):
    for seed in range(40):
        call = testing.watermark_call(seed)
        before = [testing.bytes_of(t).copy() for t in call.args[0]]
        outs, _ = launch(shim, "compact_kv_paged", Sample("", call.args, call.kwargs))
        testing.assert_watermark(call, before, outs)


def same_values(got, want):
    """Equal, NaN where NaN."""
    for g, w in zip(flat(got), flat(want), strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=0, equal_nan=True)


def assert_bits_of_the_reference(packed, key, value, indices, bits):
    """Ranges and codes to the bit, those of values on the scales that came out: torch's sqrt may be off by one."""
    same_values(packed[:2], testing.run("quantize_kv", "reference", key, value, indices, bits)[:2])
    for c, (chosen, width) in enumerate(zip(indices, bits, strict=True)):
        found = ((chosen >= 0) & (chosen < key.shape[2]))[:, None, :, None]
        rows = chosen.long().clamp(0, max(0, key.shape[2] - 1))[:, None, :, None].expand(*packed[0][c].shape[:3],
                                                                                        key.shape[3])
        v = value.gather(2, rows).float().masked_fill(~found, 0.0) if key.shape[2] else torch.zeros(rows.shape)
        v = v / packed[4][c][:, :, None]
        low, step = reference.ranges(v, found.expand_as(v), 3, 2**width - 1)
        codes = reference.codes(v, low[..., None], step[..., None], 2**width - 1)
        same_values((packed[2][c], packed[3][c]), (reference.pack(codes, width), torch.stack([low, step], 3)))


@samples("quantize_kv")
def test_quantize_kv(shim, sample):
    status = word()
    packed, launches = launch(shim, "quantize_kv", sample, status=status)
    key, _, indices, bits = sample.args
    testing.assert_quantize_kv(packed, *sample.args)
    assert_bits_of_the_reference(packed, *sample.args)
    assert status.item() == (_library.STATUS_BAD_INDEX if "out-of-range" in sample.name else 0)
    if key.numel():
        assert launches == 3
    if "range" not in sample.name and "twice" not in sample.name:
        restored = Sample("", (*packed, indices, bits, key.shape[2]), {"dtype": key.dtype})
        testing.assert_round_trip(launch(shim, "dequantize_kv", restored)[0], *sample.args[:2], packed, indices)


@samples("dequantize_kv")
def test_dequantize_kv(shim, sample):
    status = word()
    restored, launches = launch(shim, "dequantize_kv", sample, status=status)
    testing.assert_dequantize_kv(restored, *sample.args, **sample.kwargs)
    same_values(restored, testing.run("dequantize_kv", "reference", *sample.args, **sample.kwargs))
    assert status.item() == (_library.STATUS_BAD_INDEX if "out-of-range" in sample.name else 0)
    if restored[0].numel():
        assert launches == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_quantized_rows_at_every_width_and_alignment(shim, dtype):
    """Four elements at once or one by one, several tiles of channels, more rows than a chunk: the same bits."""
    for width, offset in ((128, 0), (128, 1), (160, 4), (272, 2)):
        wide = rand(2, 150, 1, width + 8, dtype=dtype, seed=width)
        key, value = (t[..., offset:offset + width].transpose(1, 2) for t in (wide, wide.flip(1)))
        chosen = torch.rand(2, 150, generator=torch.Generator().manual_seed(2)).argsort(1)[:, :145]
        sample = Sample("", (key, value, [chosen[:, 12:], chosen[:, :5], chosen[:, 5:12]], [4, 8, 2]), {})
        packed, _ = launch(shim, "quantize_kv", sample)
        assert_bits_of_the_reference(packed, *sample.args)
        roomy = [[torch.cat([t, t, t], -1)[..., offset:offset + t.shape[-1]] for t in part] for part in packed]
        for codes in (packed, roomy):
            call = Sample("", (*codes, *sample.args[2:], 150), {"dtype": dtype})
            restored, _ = launch(shim, "dequantize_kv", call)
            want = testing.run("dequantize_kv", "reference", *codes, *sample.args[2:], 150, dtype=dtype)
            same_values(restored, want)


def test_more_classes_than_a_launch_holds(shim):
    """The last class that names a token restores it, across launches too."""
    key, value = rand(1, 2, 40, 12), rand(1, 2, 40, 12, seed=1)
    chosen = torch.rand(1, 23, 6, generator=torch.Generator().manual_seed(3)).mul(45).sub(2).long()
    classes, bits = list(chosen.unbind(1)), [8, 4, 2] * 7 + [2, 4]
    status = word()
    packed, launches = launch(shim, "quantize_kv", Sample("", (key, value, classes, bits), {}), status=status)
    assert (launches, status.item()) == (9, _library.STATUS_BAD_INDEX)
    assert_bits_of_the_reference(packed, key, value, classes, bits)
    call = Sample("", (*packed, classes, bits, 40), {"dtype": torch.float32})
    restored, launches = launch(shim, "dequantize_kv", call)
    assert launches == 6
    same_values(restored, testing.run("dequantize_kv", "reference", *call.args, **call.kwargs))


@samples("prune_topk_paged")
def test_prune_topk_paged(shim, sample):
    """With large tiles, then with small ones and narrow indices, in one workspace: tokens, pages and status."""
    pools, before = sample.args[5], [testing.bytes_of(t).copy() for t in sample.args[5]]
    specs = _library.CONTRACTS["prune_topk_paged"](*sample.args, **sample.kwargs)

    def on_copies():
        return sample._replace(args=(*sample.args[:5], [testing.copied(t) for t in pools], *sample.args[6:]))

    want_status = word()
    testing.run("prune_topk_paged.out", "reference", *on_copies().args, **sample.kwargs, status=want_status, **dict(
        zip(_library.OUT_ARGS["prune_topk_paged"], _library.allocate(specs), strict=True)))
    workspace = torch.zeros(vtkernels.workspace_size(len(sample.args[3])), dtype=torch.int32)
    for multiprocessors, dtype in ((LARGE_TILES, torch.int64), (SMALL_TILES, torch.int32)):
        call, status = on_copies(), word()
        outs, launches = launch(shim, "prune_topk_paged", call, multiprocessors, dtype, workspace=workspace,
                                status=status)
        testing.assert_prune_topk_paged(outs, *call.args, before=before, **call.kwargs)
        assert not workspace.any()
        assert status.item() == want_status.item()
        assert launches == (5 + (sample.args[4] > 0) if len(sample.args[3]) else 1)  # no rows, no gather


@pytest.mark.parametrize("op", ["quantize_kv", "dequantize_kv", "prune_topk_paged"])
def test_drawn_calls(shim, op, monkeypatch):
    """Calls of the fuzzer: strides, offsets, corrupt metadata, empty dimensions."""
    monkeypatch.setattr(_dispatch, "refusal", lambda *_: None)  # it refuses tensors of the CPU
    for seed in range(25):
        judge.judge(op, judge.sample_of(op, seed)[0], ("reference", "cuda"))


@pytest.mark.parametrize("case", [c for c in SEEDS if c["op"] in _library.CUDA_OPS], ids=lambda c: c["op"])
def test_stored_cases(shim, case, monkeypatch):
    """Drawn calls that failed once, on any backend."""
    monkeypatch.setattr(_dispatch, "refusal", lambda *_: None)
    judge.judge(case["op"], judge.GENERATORS[case["op"]](Draws(given=case["choices"])), ("reference", "cuda"))


def prune_status(sample):
    if "bad-span" in sample.name:
        return _library.STATUS_BAD_SPAN
    return {"hostile-metadata": 2 | 4 | 8, "truncated": 8, "decreasing": 4}.get(sample.name.split("-", 1)[1], 0)


def prune_twice(shim, op, sample, rows, launches):
    """With large tiles, then with small ones and narrow indices, in one workspace, over other bytes: the same."""
    status = word()
    workspace = torch.zeros(vtkernels.workspace_size(rows), dtype=torch.int32)
    outs, launched = launch(shim, op, sample, LARGE_TILES, workspace=workspace, status=status)
    assert launched == launches
    assert not workspace.any()
    assert status.item() == prune_status(sample)
    again, _ = launch(shim, op, sample, SMALL_TILES, torch.int32, fill=7.0, workspace=workspace)
    assert not workspace.any()
    assert_same_bytes(again, (*outs[:2], outs[2].int(), *outs[3:]))
    return outs


@samples("prune_topk")
def test_prune_topk(shim, sample):
    kept = _library.CONTRACTS["prune_topk"](*sample.args, **sample.kwargs)[2].shape[1]
    outs = prune_twice(shim, "prune_topk", sample, sample.args[0].shape[0], 2 if kept else 1)
    testing.assert_prune_topk(outs, *sample.args, **sample.kwargs)


@samples("prune_topk_varlen")
def test_prune_topk_varlen(shim, sample):
    rows = len(sample.args[3])
    outs = prune_twice(shim, "prune_topk_varlen", sample, rows, 3 if rows else 1)
    hidden, kv, indices, scores, cu = outs
    want = varlen_reference(sample)
    assert torch.equal(scores.isnan(), want[3].isnan())
    scored = ~want[3].isnan()
    testing.assert_scores(scores[scored], sample.args[0][scored], sample.args[1])
    assert_same_bytes((hidden, kv, indices, cu), (want[0], want[1], want[2], want[4]))


def varlen_reference(sample):
    return testing.run("prune_topk_varlen", "reference", *sample.args, **sample.kwargs)


def test_many_sequences(shim):
    """More rows than the metadata kernel has threads, empty ones and spans among them."""
    lengths = torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(1))
    cu = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    lens = (lengths - 1).clamp(min=0).int()
    k = (lens - 1).clamp(min=0).int()
    total = int(lengths.sum() - lens.sum() + k.sum())
    hidden, protos = rand(int(cu[-1]), 8, dtype=torch.float16), rand(3, 8, dtype=torch.float16)
    sample = Sample("", (hidden, protos, cu, k, total), {"span_starts": (lengths - lens).int(), "span_lens": lens})
    outs, _ = launch(shim, "prune_topk_varlen", sample)
    want = varlen_reference(sample)
    assert_same_bytes((outs[0], outs[2], outs[4]), (want[0], want[2], want[4]))


def test_without_a_workspace_and_with_given_norms(shim):
    hidden, protos = clustered(90, 48).view(2, 45, 48), clustered(11, 48, seed=4)
    rnorm = (1 / protos.norm(dim=1)).repeat_interleave(2)[::2]
    sample = Sample("", (hidden, protos, 12), {"prototype_rnorm": rnorm})
    outs, _ = launch(shim, "prune_topk", sample)
    testing.assert_prune_topk(outs, *sample.args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_row_does_not_depend_on_its_neighbours_or_place(shim, dtype):
    hidden, protos = clustered(3 * 40, 130, dtype=dtype).view(3, 40, 130), clustered(70, 130, dtype=dtype, seed=4)
    (scores, argmax), _ = launch(shim, "prototype_scores", Sample("", (hidden, protos), {}), LARGE_TILES)
    for offset in (1, 2, 8):
        wide = hidden.new_zeros(23, 130 + 16)
        wide[:, offset:offset + 130] = hidden[1, 17:]
        part, _ = launch(shim, "prototype_scores", Sample("", (wide[:, offset:offset + 130], protos), {}))
        assert_same_bytes(part, (scores[1, 17:], argmax[1, 17:]))


def test_offsets_beyond_two_to_the_31(shim, tmp_path):
    """Rows 2**30 elements apart in a sparse file."""
    size = 2**31 + 16
    file = torch.from_file(str(tmp_path / "sparse"), shared=True, size=size, dtype=torch.float16)
    far = file.as_strided((1, 3, 16), (size, 2**30, 1))
    near = rand(1, 3, 16, dtype=torch.float16)
    far.copy_(near)
    protos = rand(4, 16, dtype=torch.float16, seed=1)
    want, _ = launch(shim, "prune_topk", Sample("", (near, protos, 2, [near[:, None]]), {}))
    got, _ = launch(shim, "prune_topk", Sample("", (far, protos, 2, [far[:, None]]), {}))
    assert_same_bytes(got, want)
    testing.assert_prune_topk(got, near, protos, 2, [near[:, None]])


POOL = rand(4, 2, 1, 8)
PAGED = (paged.ints([2, 1]), paged.ints(3), torch.tensor([[0, 2]]))
PAGED_OUT = {"out_seq_lens": paged.ints(0), "out_slot_mapping": torch.zeros(1, 2).long(),
             "out_freed_blocks": paged.ints([0, 0])}
RAGGED_OUT = {"out_indices": torch.zeros(2, 9).long(), "out_counts": torch.zeros(2).int(),
              "out_cu_seqlens": torch.zeros(3).int()}
PACKED_OUT = {"out_indices": torch.zeros(3).long(), "out_cu_seqlens": torch.zeros(2).int()}
CHOSEN = torch.tensor([[0, 4, 8]])
CODES = {"out_key_codes": [torch.zeros(1, 2, 3, 2).byte()], "out_key_params": [rand(1, 2, 2, 4)],
         "out_value_codes": [torch.zeros(1, 2, 3, 2).byte()], "out_value_params": [rand(1, 2, 3, 2)],
         "out_value_scales": [rand(1, 2, 4)]}
RESTORED = {"dtype": torch.float32, "out_key": rand(1, 2, 9, 4), "out_value": rand(1, 2, 9, 4)}
OUT = {"scores": torch.zeros(2, 9), "argmax": torch.zeros(2, 9, dtype=torch.int64)}


@pytest.mark.parametrize(("op", "args", "kwargs", "message"), [
    ("prototype_scores", (rand(2, 9, 8).double(), rand(3, 8)), OUT, "`tokens` is float64"),
    ("prototype_scores", (rand(2, 9, 8), rand(3, 8).half()), OUT, "`prototypes` is float16"),
    ("prototype_scores", (rand(2, 9, 8), rand(3, 7)), OUT, "`prototypes` is of size 7"),
    ("prototype_scores", (rand(2, 9, 8), rand(0, 8)), OUT, "`prototypes` is of shape \\(0, 8\\)"),
    ("prototype_scores", (rand(2, 9, 8), rand(3, 8)), OUT | {"metric": "l1"}, "`metric` is 'l1'"),
    ("prototype_scores", (rand(2, 9, 3, 8), rand(2, 3, 8)), OUT, "`prototypes` is of size 2 in G"),
    ("prototype_scores", (rand(2, 9), rand(2, 3, 8)), OUT, "`tokens` is of shape \\(2, 9\\), allowed: .* grouped"),
    ("prototype_scores", (rand(2, 9, 8), rand(3, 8)), OUT | {"metric": "l2", "prototype_rnorm": rand(3)},
     "`prototype_rnorm` is given, allowed: None with metric='l2'"),
    ("prototype_scores", (rand(2, 9, 8), rand(9, 3, 8)), OUT | {"prototype_rnorm": rand(3)},
     "`prototype_rnorm` is given, allowed: None with grouped"),
    ("temporal_scores", (rand(2, 3, 9),), {"out": rand(2, 3)}, "`tokens` is of shape"),
    ("temporal_scores", (rand(1, 2, 3, 4),), {"out": rand(1, 2, 4)}, "`out` is of shape"),
    ("temporal_scores", (rand(1, 2, 3, 4),), {"out": rand(1, 2, 3), "metric": "dot"}, "`metric` is 'dot'"),
    ("select_threshold", (rand(2, 9), float("nan")), RAGGED_OUT, "`threshold` is nan"),
    ("select_threshold", (rand(2, 9), 0.0), RAGGED_OUT | {"min_keep": 10}, "`min_keep` is 10, allowed: 0 to 9"),
    ("select_threshold", (rand(2, 9), 0.0), RAGGED_OUT | {"thresholds": rand(3)}, "`thresholds` is of size 3"),
    ("select_top_p", (rand(2, 9), 0.0), RAGGED_OUT, "`p` is 0, allowed"),
    ("select_top_p", (rand(2, 9), 0.5), RAGGED_OUT | {"out_counts": torch.zeros(3).int()}, "`out_counts` is of shape"),
    ("prototype_scores", (rand(2, 9, 8), rand(3, 8)), OUT | {"scores": rand(2, 8)}, "`scores` is of shape \\(2, 8\\)"),
    ("prototype_scores", (rand(2, 9, 8), rand(3, 8)), OUT | {"prototype_rnorm": rand(4)},
     "`prototype_rnorm` is of size 4"),
    ("select_topk", (rand(2, 9), 10), {"out": torch.zeros(2, 10).long()}, "`k` is 10, allowed: 0 to 9"),
    ("select_topk", (rand(2, 9), 3), {"out": torch.zeros(2, 3)}, "`out` is float32"),
    ("select_topk", (rand(2, 9), 3), {"out": torch.zeros(2, 3).long(), "ks": torch.zeros(3).int()},
     "`ks` is of size 3"),
    ("select_topk", (rand(2, 9), 3), {"out": torch.zeros(2, 3).long(), "excluded": rand(2, 8) > 0},
     "`excluded` is of shape \\(2, 8\\)"),
    ("select_topk", (rand(2, 9), 3), {"out": torch.zeros(2, 3).long(), "protected": rand(2, 9)},
     "`protected` is float32, allowed: bool"),
    ("select_topk", (rand(2, 9), 3), {"out": torch.zeros(2, 3).long(), "order": "best"}, "`order` is 'best'"),
    ("select_topk_varlen", (rand(9), torch.zeros(2).int(), torch.zeros(2).int(), 3), PACKED_OUT,
     "`cu_seqlens` is of size 2"),
    ("select_topk_varlen", (rand(9), torch.zeros(2).int(), torch.zeros(1).int(), 10), PACKED_OUT, "`total_out` is 10"),
    ("select_topk_varlen", (rand(9), torch.zeros(2).int(), torch.zeros(1).int(), 4), PACKED_OUT,
     "`out_indices` is of shape"),
    ("gather_tokens", ([rand(2, 9, 4)], torch.zeros(3, 1).long()), {"out": [rand(2, 1, 4)]}, "`indices` is of size 3"),
    ("gather_tokens", ([rand(2, 9, 4)], torch.zeros(2, 1).long()), {"out": [rand(2, 1, 5)]},
     "`out\\[0\\]` is of shape"),
    ("gather_kv", ([rand(2, 3, 9, 4), rand(2, 3, 8, 4)], torch.zeros(2, 1).long()),
     {"out": [rand(2, 3, 1, 4)] * 2}, "`kv\\[1\\]` is of size 8 in tokens"),
    ("gather_kv", ([rand(2, 3, 9, 4)], torch.zeros(2, 1).long()), {"out": [rand(2, 3, 1, 4)], "kv_layout": "NDH"},
     "`kv_layout` is NDH"),
    ("gather_kv", ([rand(2, 3, 9, 4)], torch.zeros(2, 2, 1).long()), {"out": [rand(2, 3, 1, 4)]},
     "`indices` is of size 2 in H"),
    ("gather_kv", ([rand(2, 3, 9, 4)], torch.zeros(2, 2, 3, 1).long()), {"out": [rand(2, 3, 1, 4)]},
     "`indices` is of size 2 in L"),
    ("gather_kv_inplace", ([rand(2, 3, 9, 4)], torch.zeros(2, 10).long()), {}, "`indices` is of size 9 in k"),
    ("quantize_kv", (rand(1, 2, 9, 4).double(), rand(1, 2, 9, 4), [CHOSEN], [4]), CODES, "`key` is float64"),
    ("quantize_kv", (rand(1, 2, 9, 4), rand(1, 2, 9, 4).half(), [CHOSEN], [4]), CODES, "`value` is float16"),
    ("quantize_kv", (rand(1, 2, 9, 4), rand(1, 2, 8, 4), [CHOSEN], [4]), CODES, "`value` is of shape"),
    ("quantize_kv", (rand(1, 2, 9, 4), rand(1, 2, 9, 4), [], []), CODES, "`indices` is empty"),
    ("quantize_kv", (rand(1, 2, 9, 4), rand(1, 2, 9, 4), [CHOSEN], [3]), CODES, "`bits\\[0\\]` is 3"),
    ("quantize_kv", (rand(1, 2, 9, 4), rand(1, 2, 9, 4), [CHOSEN.float()], [4]), CODES,
     "`indices\\[0\\]` is float32"),
    ("quantize_kv", (rand(1, 2, 9, 4), rand(1, 2, 9, 4), [CHOSEN], [8]), CODES,
     "`out_key_codes\\[0\\]` is of shape \\(1, 2, 3, 2\\)"),
    ("quantize_kv", (rand(1, 2, 9, 4), rand(1, 2, 9, 4), [CHOSEN], [4]), CODES | {"out_value_scales": []},
     "`out_value_scales` is of size 0"),
    ("dequantize_kv", (*CODES.values(), [CHOSEN], [8], 9), RESTORED, "`key_codes\\[0\\]` is of shape \\(1, 2, 3, 2\\)"),
    ("dequantize_kv", (*CODES.values(), [CHOSEN], [4], -1), RESTORED, "`tokens` is -1"),
    ("dequantize_kv", (*CODES.values(), [CHOSEN], [4], 9), RESTORED | {"dtype": torch.float64}, "`dtype` is float64"),
    ("dequantize_kv", (*CODES.values(), [CHOSEN], [4], 9), RESTORED | {"out_value": rand(1, 2, 9, 5)},
     "`out_value` is of shape"),
    ("rotate_keys", (rand(2, 3, 9, 4), torch.zeros(2, 9).int(), torch.ones(3)), {"out": rand(2, 3, 9, 4)},
     "`inv_freq` is 3, allowed: 0 to 2"),
    ("rotate_keys", (rand(2, 3, 9, 4), torch.zeros(3, 2, 9).int(), torch.ones(2, 2)), {"out": rand(2, 3, 9, 4)},
     "`inv_freq` is of size 2 in axes"),
    ("rotate_keys", (rand(2, 3, 9, 4), torch.zeros(2, 8).int(), torch.ones(2)), {"out": rand(2, 3, 9, 4)},
     "`deltas` is of size 8 in N"),
])
def test_direct_calls_are_checked(shim, op, args, kwargs, message):
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.vtkernels_cuda, op).out(*args, **kwargs)


@pytest.mark.parametrize(("changed", "message"), [
    ({"kv": []}, "`kv` is empty"),
    ({"kv": [POOL, POOL]}, "`kv\\[1\\]` is the same memory as kv\\[0\\]"),
    ({"kv": [POOL, rand(4, 3, 1, 8)]}, "`kv\\[1\\]` is of size 3 in block_size"),
    ({"kv": [POOL[:, :, :, :1].expand(4, 2, 1, 8)]}, "`kv\\[0\\]` is expanded"),
    ({"block_table": PAGED[0].long()}, "`block_table` is int64"),
    ({"seq_lens": paged.ints(3, 3)}, "`seq_lens` is of size 2 in B"),
    ({"kv_layout": "NDH"}, "`kv_layout` is NDH"),
    ({"allow_shared": True}, "`allow_shared` is True"),
    ({"dst_block_table": paged.ints([1], [2])}, "`dst_block_table` is of size 2 in B"),
    ({"out_seq_lens": paged.ints(0, 0)}, "`out_seq_lens` is of shape \\(2,\\)"),
    ({"out_freed_blocks": paged.ints([0])}, "`out_freed_blocks` is of shape \\(1, 1\\)"),
    ({"status": torch.zeros(2).int()}, "`status` is of size 2"),
])
def test_direct_calls_on_pages_are_checked(shim, changed, message):
    call = {"kv": [POOL], **dict(zip(("block_table", "seq_lens", "indices"), PAGED, strict=True)), **PAGED_OUT}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.vtkernels_cuda.compact_kv_paged.out(**(call | changed))
    del call["indices"]
    call |= {"hidden": rand(3, 8), "prototypes": rand(2, 8), "cu_seqlens": paged.ints(0, 3), "k": paged.ints(2),
             "total_out": 2, "out_hidden": rand(2, 8), "out_indices": torch.zeros(2).long(), "out_scores": rand(3),
             "out_cu_seqlens": paged.ints(0, 0), "out_slot_mapping": torch.zeros(2).long()}
    for wrong, words in ((changed, message), ({"context_lens": paged.ints(0, 0)}, "`context_lens` is of size 2 in B"),
                         ({"out_slot_mapping": torch.zeros(3).long()}, "`out_slot_mapping` is of shape")):
        with pytest.raises(RuntimeError, match=words):
            torch.ops.vtkernels_cuda.prune_topk_paged.out(**(call | wrong))


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"span_start": 10}, "`span_start` is 10"),
    ({"span_start": 5, "span_len": 5}, "`span_len` is 5"),
    ({"workspace": torch.zeros(79, dtype=torch.int32)}, "`workspace` is int32 of shape \\(79,\\)"),
    ({"status": torch.zeros(2, dtype=torch.int32)}, "`status` is of size 2"),
    ({"out_hidden": rand(2, 5, 8)}, "`out_hidden` is of shape"),
    ({"kv": [rand(2, 3, 9, 4)]}, "`out_kv` is of size 0"),
])
def test_direct_prunes_are_checked(shim, kwargs, message):
    outs = {"out_hidden": rand(2, 4, 8), "out_kv": [], "out_indices": torch.zeros(2, 4).long(),
            "out_scores": rand(2, 9)}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.vtkernels_cuda.prune_topk.out(rand(2, 9, 8), rand(3, 8), 4, **(outs | kwargs))
