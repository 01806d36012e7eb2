"""The CUDA sources and their registration, compiled for the CPU by the shim in cuda_shim/ and run against the oracles.

Same source, executed by threads: it shows wrong arithmetic, indexing and metadata, and under a sanitizer overruns and
missing barriers. It says nothing about the GPU's memory model, races between blocks, tensor cores or speed.
"""

import ctypes
import os
import re
import shutil

import numpy as np
import pytest
import torch
from cuda_shim import build
from helpers import assert_same_bytes, gather_status, poison

import vtkernels
from vtkernels import _library, testing
from vtkernels.testing import Sample, clustered, paged, rand

if shutil.which("g++") is None and os.environ.get("CI") != "true":
    pytest.skip("g++ is missing", allow_module_level=True)

LARGE_TILES, SMALL_TILES = 1, 1000  # multiprocessors that the shim reports: few rows fill one, none fill a thousand


@pytest.fixture(scope="session")
def shim(tmp_path_factory) -> ctypes.CDLL:
    path = str(build.torch_library(tmp_path_factory.mktemp("cuda_shim")))
    torch.ops.load_library(path)
    return ctypes.CDLL(path)


def launch(shim, op, sample, multiprocessors=SMALL_TILES, index_dtype=torch.int64, **extra):
    """One call into poisoned buffers, and how many kernels it launched."""
    specs = _library.CONTRACTS[op](*sample.args, **sample.kwargs)
    names = _library.OUT_ARGS[op]
    outs = poison(specs if len(names) > 1 else (specs,)[:len(names)], index_dtype if "gather" not in op else None)
    shim.shim_configure(len(sample.name), multiprocessors)
    before = shim.shim_launches()
    getattr(getattr(torch.ops, _library.CUDA_NAMESPACE), op).out(
        *sample.args, **sample.kwargs, **dict(zip(names, outs, strict=True)), **extra)
    return outs, shim.shim_launches() - before


def samples(op, keep=lambda name: True):
    return pytest.mark.parametrize("sample", [s for s in testing.SAMPLES[op]() if keep(s.name)], ids=lambda s: s.name)


def word():
    return torch.zeros(1, dtype=torch.int32)


@samples("prototype_scores", lambda name: "l2" not in name and "grouped" not in name)
def test_prototype_scores(shim, sample):
    (scores, argmax), _ = launch(shim, "prototype_scores", sample)
    testing.assert_scores(scores, *sample.args, sample.kwargs.get("metric", "cosine"), argmax)
    again, _ = launch(shim, "prototype_scores", sample, LARGE_TILES, torch.int32)
    assert_same_bytes(again, (scores, argmax.int()))


MASKED = "masks|score|too-few|options|protected|excluded"  # these are refused


@samples("select_topk", lambda name: not re.search(f"-k[2-57-9]$|smallest-n[47]|ties.*k(0|256)|{MASKED}", name))
def test_select_topk(shim, sample):
    dtype = torch.int32 if len(sample.name) % 2 else torch.int64
    (out,), _ = launch(shim, "select_topk", sample, index_dtype=dtype)
    assert out.dtype == dtype
    assert out.tolist() == testing.oracle_topk(*sample.args, **sample.kwargs)


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


def prune_status(sample):
    if "bad-span" in sample.name:
        return _library.STATUS_BAD_SPAN
    return {"hostile-metadata": 2 | 4 | 8, "truncated": 8}.get(sample.name.split("-", 1)[1], 0)


def prune_twice(shim, op, sample, rows, launches):
    """With large tiles, then with small ones and narrow indices, in one workspace: the same bytes."""
    status = word()
    workspace = torch.zeros(vtkernels.workspace_size(rows), dtype=torch.int32)
    outs, launched = launch(shim, op, sample, LARGE_TILES, workspace=workspace, status=status)
    assert launched == launches
    assert not workspace.any()
    assert status.item() == prune_status(sample)
    again, _ = launch(shim, op, sample, SMALL_TILES, torch.int32, workspace=workspace)
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
OUT = {"scores": torch.zeros(2, 9), "argmax": torch.zeros(2, 9, dtype=torch.int64)}


@pytest.mark.parametrize(("op", "args", "kwargs", "message"), [
    ("prototype_scores", (rand(2, 9, 8).double(), rand(3, 8)), OUT, "`tokens` is float64"),
    ("prototype_scores", (rand(2, 9, 8), rand(3, 8).half()), OUT, "`prototypes` is float16"),
    ("prototype_scores", (rand(2, 9, 8), rand(3, 7)), OUT, "`prototypes` is of size 7"),
    ("prototype_scores", (rand(2, 9, 8), rand(0, 8)), OUT, "`prototypes` is of shape \\(0, 8\\)"),
    ("prototype_scores", (rand(2, 9, 8), rand(3, 8)), OUT | {"metric": "l2"}, "`metric` is l2"),
    ("prototype_scores", (rand(2, 9, 8), rand(3, 8)), OUT | {"scores": rand(2, 8)}, "`scores` is of shape \\(2, 8\\)"),
    ("prototype_scores", (rand(2, 9, 8), rand(3, 8)), OUT | {"prototype_rnorm": rand(4)},
     "`prototype_rnorm` is of size 4"),
    ("select_topk", (rand(2, 9), 10), {"out": torch.zeros(2, 10).long()}, "`k` is 10, allowed: 0 to 9"),
    ("select_topk", (rand(2, 9), 3), {"out": torch.zeros(2, 3)}, "`out` is float32"),
    ("select_topk", (rand(2, 9), 3), {"out": torch.zeros(2, 3).long(), "ks": torch.zeros(3).int()},
     "`ks` is of size 3"),
    ("select_topk", (rand(2, 9), 3), {"out": torch.zeros(2, 3).long(), "excluded": rand(2, 9) > 0},
     "`excluded` is given, allowed: None with the cuda backend"),
    ("select_topk", (rand(2, 9), 3), {"out": torch.zeros(2, 3).long(), "protected": rand(2, 9) > 0},
     "`protected` is given"),
    ("select_topk", (rand(2, 9), 3), {"out": torch.zeros(2, 3).long(), "order": "score"}, "`order` is score"),
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
