"""Launch parameters from tables: nearest entry, folders, and one clear error for each malformed table."""

import json

import pytest
import torch

from vtkernels import _env
from vtkernels.tuning import lookup

OP = "select_topk"
CONFIG = {"select_block": 1024, "num_warps": 4, "num_stages": 1}


def write(folder, entries, gpu="default", op=OP):
    path = folder / gpu / f"{op}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(entries if isinstance(entries, str) else json.dumps({"source": "a test", "entries": entries}))
    return path


def entry(match, **changes):
    return {"match": match, "config": {**CONFIG, **changes}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(_env, "TUNING_DIR", str(tmp_path))
    return tmp_path


def config(device="A GPU", dtype=torch.float32, op=OP, **shape):
    return lookup.config(op, device, dtype, **shape)


def test_every_op_has_a_default_table_that_says_where_it_comes_from():
    for op in lookup.FIELDS:
        path = lookup.SHIPPED / "default" / f"{op}.json"
        assert lookup.load(path, op)
        assert json.loads(path.read_text())["source"]


def test_the_nearest_size_as_a_ratio_wins(folder):
    write(folder, [entry({"n": 100}, num_warps=1), entry({"n": 10_000}, num_warps=2)])
    assert [config(n=n)["num_warps"] for n in (0, 1, 900, 1100, 10**9)] == [1, 1, 1, 2, 2]


def test_the_first_of_equally_near_entries_wins(folder):
    write(folder, [entry({}, num_warps=1), entry({}, num_warps=2)])
    assert config(n=5)["num_warps"] == 1


def test_dtype_must_match(folder):
    path = write(folder, [entry({"dtype": ["float16"], "n": 5}, num_warps=1), entry({"dtype": ["float32"], "n": 500})])
    assert config(n=5)["num_warps"] == 4
    with pytest.raises(ValueError, match=f"{path}: no entry for dtype bfloat16"):
        config(dtype=torch.bfloat16, n=5)


def test_the_table_of_the_gpu_comes_before_the_default_one(folder):
    write(folder, [entry({}, num_warps=1)])
    write(folder, [entry({}, num_warps=2)], gpu="nvidia-h200")
    assert config("NVIDIA H200")["num_warps"] == 2
    assert config("NVIDIA A100-SXM4-80GB")["num_warps"] == 1


def test_an_override_folder_may_lack_ops(folder):
    write(folder, [entry({}, num_warps=1)])
    assert "block_rows" in config(op="gather_kv", k=3, tensors=2)


@pytest.mark.parametrize(("table", "message"), [
    ("{", "not JSON"),
    ("[]", "the top level is 'list'"),
    ('{"entries": []}', r"the top level is \['entries'\]"),
    ([], r"`entries` is \[\]"),
    ([{"match": {}}], r"entries\[0\] is"),
    ([{"match": [], "config": CONFIG}], r"entries\[0\].match is \[\]"),
    ([entry({"n": "many"})], r"entries\[0\].match.n is 'many'"),
    ([entry({}), entry({}, more=1)], r"entries\[1\].config is .* allowed: exactly select_block, num_warps, num_stages"),
    ([entry({}, num_warps=0)], r"entries\[0\].config.num_warps is 0, allowed: an integer of at least 1"),
    ([entry({}, num_warps=True)], r"entries\[0\].config.num_warps is True"),
    ([entry({}, select_block=1000)], r"entries\[0\].config.select_block is 1000, allowed: a power of two"),
])
def test_a_malformed_table_names_the_file_and_the_field(folder, table, message):
    path = write(folder, table)
    with pytest.raises(ValueError, match=f"tuning table {path}: {message}"):
        config()


def test_path_is_one_of_two(folder):
    good = lookup.load(lookup.SHIPPED / "default" / "prune_topk.json", "prune_topk")[0]["config"]
    write(folder, [{"match": {}, "config": {**good, "path": "three"}}], op="prune_topk")
    with pytest.raises(ValueError, match="path is 'three', allowed: one_launch or two_launch"):
        config(op="prune_topk")
