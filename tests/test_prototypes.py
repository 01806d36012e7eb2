"""Codebook files and how they are built."""

import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

import vtkernels
from vtkernels import prototypes
from vtkernels.prototypes import CodebookError, build_kmeans, io, load, save

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PUBLISHED = DATA / "redundancy_codebook_llava_onevision_7b.safetensors"


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write_header(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip(tmp_path, dtype):
    path, book = tmp_path / "book.safetensors", rand(5, 12).to(dtype)
    save(path, book[:, ::2], tensors={"more": torch.arange(3)}, recipe="by hand", source="nowhere", layer="3")
    got = load(path, dim=6)
    assert got.prototypes.dtype == dtype
    assert torch.equal(got.prototypes, book[:, ::2])
    assert torch.equal(got.tensors["more"], torch.arange(3))
    assert got.metadata.items() >= {"recipe": "by hand", "source": "nowhere", "layer": "3", "sizes": "5x6",
                                    "version": "1"}.items()
    assert len(got.metadata["sha256"]) == 64
    torch.testing.assert_close(got.rnorm, 1 / book[:, ::2].float().norm(dim=1))
    assert load(path, dtype=torch.float32).prototypes.dtype == torch.float32


def test_same_codebook_same_bytes(tmp_path):
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        save(file, rand(4, 8), tensors={"z": rand(2), "a": rand(3)}, **dict.fromkeys("qwertyuiop", "x"))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_loaded_codebook_drives_the_op(tmp_path):
    save(tmp_path / "book", rand(5, 16))
    book = load(tmp_path / "book", dtype=torch.bfloat16)
    hidden = rand(1, 20, 16, seed=1).bfloat16()
    with_norms = vtkernels.prune_topk(hidden, book.prototypes, 7, prototype_rnorm=book.rnorm)
    assert torch.equal(with_norms[2], vtkernels.prune_topk(hidden, book.prototypes, 7)[2])


@pytest.mark.parametrize(("tensor", "says"), [
    (torch.zeros(0, 8), r"shape \(0, 8\)"),
    (torch.zeros(8, 0), r"shape \(8, 0\)"),
    (rand(8), r"shape \(8,\)"),
    (rand(2, 3, 4), r"shape \(2, 3, 4\)"),
    (torch.ones(2, 4, dtype=torch.int32), "int32"),
    (torch.ones(2, 4, dtype=torch.float64), "float64"),
    (torch.tensor([[1.0, float("nan")]]), "NaN or infinite"),
    (torch.tensor([[1.0, float("-inf")]]), "NaN or infinite"),
    (torch.full((1, 4), 3e38), "norm above"),
])
def test_bad_prototypes_are_neither_read_nor_written(tmp_path, tensor, says):
    path = tmp_path / "bad.safetensors"
    safetensors.torch.save_file({"prototypes": tensor}, str(path))
    with pytest.raises(CodebookError, match=rf"bad\.safetensors: .*{says}.*, allowed: "):
        load(path)
    before = path.read_bytes()
    with pytest.raises(CodebookError, match=says):
        save(path, tensor)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("contents", [b"", b"1234567", b"\0" * 64, b"\x89PNG\r\n\x1a\n" + b"x" * 100,
                                      pickle.dumps({"prototypes": [1.0]}) + b"." * 64])
def test_other_files(tmp_path, contents):
    (tmp_path / "other").write_bytes(contents)
    with pytest.raises(CodebookError, match=r"other: is not a safetensors file.*allowed: a safetensors file"):
        load(tmp_path / "other")


def test_hostile_headers(tmp_path):
    big = write_header(tmp_path / "big", b" " * (io.MAX_HEADER_BYTES + 1))
    with pytest.raises(CodebookError, match=f"header of {io.MAX_HEADER_BYTES + 1} bytes, allowed: at most"):
        load(big)
    deep = write_header(tmp_path / "deep", b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}")
    beyond = json.dumps({"prototypes": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 2**62]}}).encode()
    for path in (deep, write_header(tmp_path / "beyond", beyond), write_header(tmp_path / "list", b"[1, 2]  "),
                 write_header(tmp_path / "past", b"{}      ", length=2**63)):
        with pytest.raises(CodebookError, match="is not a safetensors file"):
            load(path)


def test_missing_file_folder_and_name(tmp_path):
    with pytest.raises(CodebookError, match=r"nowhere: cannot be read \(No such file"):
        load(tmp_path / "nowhere")
    with pytest.raises(CodebookError, match="cannot be read"):
        load(tmp_path)
    safetensors.torch.save_file({"centres": rand(2, 4)}, str(tmp_path / "named"))
    with pytest.raises(CodebookError, match="has no tensor 'prototypes', allowed: 'centres'"):
        load(tmp_path / "named")
    assert load(tmp_path / "named", tensor="centres").prototypes.shape == (2, 4)


def test_flipped_bit_dimension_and_dtype(tmp_path):
    path = tmp_path / "book"
    save(path, rand(3, 4))
    with pytest.raises(CodebookError, match=r"so D = 4, allowed: D = 5"):
        load(path, dim=5)
    with pytest.raises(CodebookError, match=r"asked for as torch\.int8"):
        load(path, dtype=torch.int8)
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)
    with pytest.raises(CodebookError, match="sha256"):
        load(path)


def test_conversion_that_overflows(tmp_path):
    save(tmp_path / "book", torch.full((1, 4), 1e6))
    with pytest.raises(CodebookError, match="as float16` has NaN or infinite"):
        load(tmp_path / "book", dtype=torch.float16)


def test_metadata_are_strings(tmp_path):
    for metadata in ({"layer": 3}, {"sha256": "0" * 64}):
        with pytest.raises(CodebookError, match="is given metadata"):
            save(tmp_path / "book", rand(2, 4), **metadata)
    with pytest.raises(CodebookError, match="is given metadata of"):
        save(tmp_path / "book", rand(2, 4), recipe="x" * io.MAX_HEADER_BYTES)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_failed_save_leaves_the_old_file_whole(tmp_path, monkeypatch, call):
    path = tmp_path / "book"
    save(path, rand(3, 4))
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(io.os, call, fail)
        with pytest.raises(OSError, match="disk full"):
            save(path, rand(9, 4))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["book"]


def test_kmeans_finds_directions_whatever_the_norms():
    directions = torch.nn.functional.normalize(rand(6, 40), dim=1)
    label = torch.arange(3000) % 6
    scale = torch.logspace(-6, 6, 3000)[torch.randperm(3000, generator=torch.Generator().manual_seed(1))]
    features = (directions[label] + 0.02 * rand(3000, 40, seed=2)) * scale[:, None]
    best = max((build_kmeans(features, 6, seed=seed) for seed in range(8)), key=lambda c: _cost(features, c))
    similarity = directions @ best.T
    assert similarity.amax(1).min() > 0.999
    assert sorted(similarity.argmax(1).tolist()) == [0, 1, 2, 3, 4, 5]


def _cost(features: torch.Tensor, centres: torch.Tensor) -> float:
    return float((torch.nn.functional.normalize(features, dim=1) @ centres.T).amax(1).mean())


def test_kmeans_improves_repeats_and_batches(monkeypatch):
    features = rand(2000, 16)
    centres = [build_kmeans(features, 20, seed=3, iterations=i) for i in (0, 1, 10)]
    assert _cost(features, centres[0]) < _cost(features, centres[1]) < _cost(features, centres[2])
    torch.testing.assert_close(centres[2].norm(dim=1), torch.ones(20))
    assert torch.equal(centres[2], build_kmeans(features, 20, seed=3, iterations=10))
    assert not torch.equal(centres[2], build_kmeans(features, 20, seed=4, iterations=10))
    whole = build_kmeans(features.double(), 20, seed=3, iterations=5)
    monkeypatch.setattr("vtkernels.prototypes.kmeans.BATCH", 77)
    torch.testing.assert_close(build_kmeans(features.double(), 20, seed=3, iterations=5), whole, rtol=1e-9, atol=1e-8)


def test_kmeans_zero_rows_duplicates_and_half():
    features = torch.cat([torch.zeros(5, 8), rand(1, 8).expand(20, 8)]).half()
    centres = build_kmeans(features, 10)
    assert centres.dtype == torch.float32
    assert centres.isfinite().all()


@pytest.mark.parametrize(("features", "count", "error", "says"), [
    (rand(4, 8), 5, ValueError, "`count` is 5, allowed: 1 to 4"),
    (rand(4, 8), 0, ValueError, "`count` is 0"),
    (rand(4), 1, ValueError, "a 1-D tensor"),
    (torch.ones(4, 8, dtype=torch.int64), 1, TypeError, "a floating dtype"),
    (torch.full((4, 8), float("nan")), 1, ValueError, "NaN or infinite"),
])
def test_kmeans_refuses(features, count, error, says):
    with pytest.raises(error, match=says):
        build_kmeans(features, count)


def test_published_codebook():
    """The 45 prototypes that RedundancyCodebook's authors published; another writer's file, without a hash."""
    if not PUBLISHED.is_file():
        pytest.skip(f"no {PUBLISHED.name} in the folder shared/data beside the checkout")
    book = load(PUBLISHED, dim=3584, tensor="prototypes")
    assert book.prototypes.shape == (45, 3584)
    assert book.prototypes.dtype == torch.float16
    assert "sha256" not in book.metadata
    norms = 1 / book.rnorm
    assert 30 < norms.min() < norms.max() < 100
    with pytest.raises(CodebookError, match="so D = 3584, allowed: D = 4096"):
        load(PUBLISHED, dim=4096)


def test_shipped_codebook_is_small_and_documented():
    assert prototypes.SHIPPED.stat().st_size < 1 << 20
    book = load(prototypes.SHIPPED, dim=432)
    assert {"recipe", "source", "encoder", "layer", "sizes", "version", "sha256"} <= set(book.metadata)
    assert set(book.tensors) == {"encoder.mean", "encoder.std"}


def test_shipped_codebook_can_be_rebuilt():
    """The whole build, in float64 throughout. Features are roots of coefficients: one that rounding leaves at 1e-16
    instead of 0, on another CPU, shows as 1e-8."""
    codebook = pytest.importorskip("vtkernels.demo.codebook")
    pytest.importorskip("skimage")
    shipped = load(prototypes.SHIPPED)
    redundant, statistics, metadata = codebook.build()
    torch.testing.assert_close(redundant, shipped.prototypes, rtol=1e-4, atol=1e-6)
    for name, values in statistics.items():
        torch.testing.assert_close(values, shipped.tensors[name], rtol=1e-9, atol=1e-8)
    assert shipped.metadata.items() >= metadata.items()
