"""The demo on packaged and hostile photographs, and its judge of right answers."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

pytest.importorskip("PIL", reason="the demo needs the packages of vtkernels[demo]")
pytest.importorskip("matplotlib", reason="the demo needs the packages of vtkernels[demo]")

from PIL import Image

import vtkernels
from vtkernels import prototypes
from vtkernels.__main__ import main
from vtkernels.demo import DemoError, codebook, encoder, features, images, picture, pipeline
from vtkernels.demo import run as demo_run


@pytest.fixture
def astronaut() -> Path:
    path = images.packaged_path("skimage", "data/astronaut.png")
    if path is None:
        pytest.skip("scikit-image is not installed, or no longer ships astronaut.png")
    return path


@pytest.fixture(autouse=True)
def _few_repeats(monkeypatch):
    monkeypatch.setattr(pipeline, "REPEATS", 2)
    monkeypatch.setattr(pipeline, "WARMUP", 1)


def gradient(width: int, height: int) -> Image.Image:
    across = np.linspace(0, 255, width)[None, :, None] + np.zeros((height, 1, 3))
    return Image.fromarray(across.astype(np.uint8))


def tokens(seed: int = 0, n: int = 30, d: int = 16) -> torch.Tensor:
    return torch.randn(1, n, d, generator=torch.Generator().manual_seed(seed))


def test_packaged_photograph_end_to_end(astronaut, tmp_path, capsys, monkeypatch):
    drawn = []
    draw = picture.draw
    monkeypatch.setattr(picture, "draw", lambda *args: drawn.append(args) or draw(*args))
    assert main(["demo", "--images", str(astronaut), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert os.listdir(tmp_path / "out") == ["astronaut.png"]
    with Image.open(tmp_path / "out" / "astronaut.png") as image:
        image.load()
        assert min(image.size) > 400
    ((title, note, _, kept, scores),) = drawn
    assert kept.shape == scores.shape == (24, 24)
    assert kept.sum() == 144
    assert scores[kept].max() <= scores[~kept].min()
    assert "144 of 576" in title
    assert "stands in for a vision tower" in note
    row = next(line for line in out.splitlines() if line.startswith("astronaut"))
    moved = 4 * (432 + 2 * pipeline.HEADS * pipeline.HEAD_DIM)
    assert row.split()[1:7] == ["576", "144", f"{576 * moved / 1e6:.2f}", "MB", f"{144 * moved / 1e6:.2f}", "MB"]
    for label in ("encode", "score ", "select", "gather", "vtkernels.prune_topk", "torch eager", "torch, better eager",
                  "torch.compile"):
        line = next(line for line in out.splitlines() if line.startswith(label))
        assert any(part.replace(".", "").isdigit() for part in line.split()) or "cannot run here" in line
    assert "stands in for a vision tower" in out


def test_content_is_kept_and_plain_sky_is_not():
    """On a scene made here: noise patches in the middle of a smooth sky."""
    rng = np.random.default_rng(0)
    scene = np.zeros((encoder.SIDE, encoder.SIDE, 3)) + np.linspace(200, 120, encoder.SIDE)[:, None, None]
    scene += [-40, 0, 40]
    centre = slice(8 * encoder.PATCH, 16 * encoder.PATCH)
    scene[centre, centre] = rng.integers(0, 256, (8 * encoder.PATCH, 8 * encoder.PATCH, 3))
    book = prototypes.load(prototypes.SHIPPED)
    raw = encoder.raw_features(torch.from_numpy(scene.clip(0, 255).astype(np.uint8)))
    hidden = encoder.standardize(raw, book.tensors["encoder.mean"], book.tensors["encoder.std"]).float()[None]
    _, _, indices, _ = vtkernels.prune_topk(hidden, book.prototypes, 64)
    want = [row * 24 + column for row in range(8, 16) for column in range(8, 16)]
    assert indices[0].tolist() == want


def test_folder_with_broken_image_and_same_names(tmp_path, capsys):
    inside = tmp_path / "in"
    (inside / "deep").mkdir(parents=True)
    gradient(40, 30).save(inside / "a.png")
    gradient(30, 40).save(inside / "deep" / "a.JPG", format="JPEG")
    (inside / "broken.png").write_bytes((inside / "a.png").read_bytes()[:90])
    (inside / "notes.txt").write_text("no image")
    out = inside / "demo_out"
    for _ in range(2):  # the second run does not take the first one's pictures for photographs
        assert main(["demo", "--images", str(inside), "--out", str(out), "--no-compile", "--keep", "0.5"]) == 0
        text = capsys.readouterr().out
        assert "skipped 1 unreadable image:" in text
        assert "broken.png: not an image" in text
        assert sorted(os.listdir(out)) == ["a-2.png", "a.png"]
        assert text.count("576  288") == 2


def test_only_broken_images(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
    assert main(["demo", "--images", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "broken.png" in captured.out
    assert captured.err == "vtkernels: error: none of the images could be read\n"
    assert not (tmp_path / "out").exists()


def test_named_broken_image_stops_before_anything_is_written(tmp_path, capsys):
    gradient(20, 20).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    argv = ["demo", "--images", str(tmp_path / "good.png"), str(tmp_path / "bad.png"), "--out", str(tmp_path / "out")]
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert "bad.png: not an image that Pillow can read" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_folder_without_images_and_out_that_is_a_file(tmp_path, capsys):
    assert main(["demo", "--images", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "no image in this folder" in capsys.readouterr().err
    gradient(20, 20).save(tmp_path / "good.png")
    (tmp_path / "out").write_text("keep me")
    assert main(["demo", "--images", str(tmp_path / "good.png"), "--out", str(tmp_path / "out")]) == 1
    assert "is a file, allowed: a folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "keep me"


def test_failed_write_leaves_no_half_picture(tmp_path, capsys, monkeypatch):
    gradient(20, 20).save(tmp_path / "good.png")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["demo", "--images", str(tmp_path / "good.png"), "--out", str(tmp_path / "out"), "--no-compile"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I",
                                  "I;16", "F"])
def test_every_mode_becomes_rgb(mode):
    base = gradient(64, 8)
    if mode in ("I;16", "I", "F"):
        image = Image.fromarray((np.asarray(base.convert("L")).astype(np.float32) * 257).astype(
            {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
        assert image.mode == mode
    elif mode == "LAB":
        image = Image.merge("LAB", [base.convert("L"), *[Image.new("L", base.size, 128)] * 2])
    elif mode == "PA":
        image = base.convert("P").convert("PA")
    else:
        image = base.convert(mode)
    rgb = images.to_rgb(image)
    assert rgb.mode == "RGB"
    light = np.asarray(rgb.convert("L")).astype(float)
    assert light[:, :8].mean() < 60
    assert light[:, -8:].mean() > 195


def test_transparent_is_white_and_nan_is_no_accident():
    assert np.asarray(images.to_rgb(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))).min() == 255
    values = np.array([[0, np.nan, np.inf, 1]], dtype=np.float32)
    assert np.asarray(images.to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 0, 0, 255]
    assert np.asarray(images.to_rgb(Image.fromarray(np.full((2, 2), 7, np.float32)))).max() == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (5000, 4000)])
def test_every_size(tmp_path, size):
    Image.new("L", size, 90).save(tmp_path / "x.png")
    photograph = images.read(tmp_path / "x.png")
    assert photograph.pixels.shape == (336, 336, 3)
    assert photograph.pixels.unique().tolist() == [90]
    assert max(photograph.view.size) == images.VIEW_SIDE
    assert min(photograph.view.size) >= images.VIEW_SIDE // 3


def test_too_many_pixels(tmp_path, monkeypatch):
    Image.new("1", (300, 200)).save(tmp_path / "x.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 59_999)
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(DemoError, match=r"x\.png: 300 x 200 pixels, allowed: at most 59999"):
        images.read(tmp_path / "x.png")
    assert before == Image.MAX_IMAGE_PIXELS


def test_orientation_tag_is_honoured(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shot with the camera turned
    gradient(40, 20).save(tmp_path / "x.jpg", exif=exif)
    width, height = images.read(tmp_path / "x.jpg").view.size
    assert height > width


def test_training_and_demo_photographs_are_disjoint():
    assert not {Path(file).stem for _, file in images.PACKAGED} & set(codebook.TRAINING)


def test_encoder_refuses_other_pixels():
    with pytest.raises(ValueError, match=r"`pixels` is torch\.float32 of shape"):
        encoder.raw_features(torch.zeros(336, 336, 3))
    assert encoder.DIM == 432


def test_encoder_by_definition():
    """One patch at scale 1 against the DCT sum written out."""
    pixels = torch.randint(0, 256, (336, 336, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    raw = encoder.raw_features(pixels)
    patch = pixels[28:42, 70:84].double().numpy() / 255 @ np.array([0.299, 0.587, 0.114])  # row 2, column 5
    x = np.arange(14) + 0.5
    for down, across in ((0, 0), (0, 1), (3, 0), (7, 5)):
        waves = np.outer(np.cos(np.pi / 14 * x * down), np.cos(np.pi / 14 * x * across))
        want = (patch * waves).mean()
        got = raw[2 * 24 + 5, across * 8 + down].item()
        assert got == pytest.approx(np.sign(want) * abs(want) ** 0.5, rel=1e-9)


@pytest.mark.parametrize("batched", [False, True])
def test_features_file(tmp_path, capsys, batched):
    hidden = tokens(n=37).half()
    hidden[0, 3] = float("nan")
    book = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    prototypes.save(tmp_path / "book", book)
    rows = torch.cat([hidden, hidden.flip(1)]) if batched else hidden[0]
    safetensors.torch.save_file({"features": rows, "other": torch.zeros(1)}, str(tmp_path / "mine.safetensors"))
    argv = ["demo", "--features", str(tmp_path / "mine.safetensors"), "--codebook", str(tmp_path / "book"),
            "--out", str(tmp_path / "out"), "--no-compile"]
    assert main(argv) == 0
    names = ["mine-0.png", "mine-1.png"] if batched else ["mine.png"]
    assert sorted(os.listdir(tmp_path / "out")) == names
    assert capsys.readouterr().out.count(" 37    9 ") == len(names)


@pytest.mark.parametrize(("tensors", "says"), [
    ({"features": torch.zeros(3)}, r"shape \(3,\), allowed: \[N, D\] or \[B, N, D\]"),
    ({"features": torch.zeros(0, 4)}, "not empty"),
    ({"features": torch.zeros(3, 4, dtype=torch.int64)}, "are int64, allowed: float32"),
    ({"a": torch.zeros(3, 4), "b": torch.zeros(1)}, "holds the tensors .*allowed: one named 'features'"),
    ({}, r"holds the tensors \(none\)"),
])
def test_bad_features(tmp_path, tensors, says):
    safetensors.torch.save_file(tensors, str(tmp_path / "f"))
    with pytest.raises(DemoError, match=says):
        features.read_features(tmp_path / "f")


def test_features_that_do_not_fit_the_codebook(tmp_path, capsys):
    safetensors.torch.save_file({"features": tokens()}, str(tmp_path / "f"))
    assert main(["demo", "--features", str(tmp_path / "f"), "--out", str(tmp_path / "out")]) == 1
    assert "so D = 432, allowed: D = 16" in capsys.readouterr().err
    (tmp_path / "g").write_bytes(b"nothing of the kind")
    assert main(["demo", "--features", str(tmp_path / "g")]) == 1
    assert "is not a safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_package_is_one_line(capsys, monkeypatch, tmp_path):
    gradient(20, 20).save(tmp_path / "x.png")

    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("vtkernels.demo.import_module", absent)
    assert main(["demo", "--images", str(tmp_path / "x.png")]) == 1
    error = capsys.readouterr().err
    assert "pip install 'vtkernels[demo]'" in error
    assert error.count("\n") == 1
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    with pytest.raises(DemoError, match="need scikit-image or scikit-learn"):
        images.packaged()


def test_disagreement_finds_each_wrong_answer():
    hidden, book = tokens(), tokens(seed=1, n=5)[0]
    kv = pipeline.project_kv(hidden, seed=0)
    race = pipeline.Race(book, 1 / book.norm(dim=1), 8, compile_peer=False)
    right, scores = race.fused(hidden, kv)
    judge = lambda pruned: pipeline.disagreement(pruned, hidden, kv, scores.double(), pipeline.TIE)
    assert judge(right) is None
    for peer in race.peers.values():
        assert judge(peer(hidden, kv)) is None
    others = torch.arange(30)[~torch.isin(torch.arange(30), right.indices[0])][:8][None]
    assert "least similar" in judge(race.gather(hidden, kv, others))
    assert "ascending" in judge(race.gather(hidden, kv, right.indices.flip(1)))
    assert "rows differ" in judge(right._replace(hidden=right.hidden + 1))
    assert "rows differ" in judge(right._replace(kv=[right.kv[0], right.kv[0]]))


def test_no_time_for_a_wrong_peer(monkeypatch):
    monkeypatch.setattr(pipeline.Race, "better_eager",
                        lambda self, hidden, kv: self._take(hidden, kv, -self.score(hidden)[0]))
    book = tokens(seed=1, n=5)[0]
    race = pipeline.Race(book, 1 / book.norm(dim=1), 8, compile_peer=False)
    hidden = tokens()
    race.run(hidden, pipeline.project_kv(hidden, seed=0))
    assert "better eager" not in race.timings.measured
    assert "least similar" in race.timings.refused["better eager"]
    assert {"prune_topk", "three ops", "eager", "score", "select", "gather"} <= set(race.timings.measured)


def test_a_wrong_prune_topk_stops_the_demo(monkeypatch):
    monkeypatch.setattr(pipeline.vtkernels, "prune_topk",
                        lambda hidden, book, k, kv, **_: (hidden[:, :k], [t[:, :, :k] for t in kv],
                                                          torch.arange(k)[None], torch.zeros(1, hidden.shape[1])))
    book = tokens(seed=1, n=5)[0]
    race = pipeline.Race(book, 1 / book.norm(dim=1), 8, compile_peer=False)
    with pytest.raises(DemoError, match="prune_topk is wrong here"):
        race.run(tokens(), pipeline.project_kv(tokens(), seed=0))


def test_compile_that_cannot_run_gives_its_reason(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler found\nand a page of advice")

    monkeypatch.setattr(torch, "compile", lambda function, **_: broken)
    book = tokens(seed=1, n=5)[0]
    race = pipeline.Race(book, 1 / book.norm(dim=1), 8, compile_peer=True)
    race.run(tokens(), pipeline.project_kv(tokens(), seed=0))
    assert race.timings.refused["torch.compile"] == "cannot run here: no C++ compiler found"


def test_projection_depends_on_the_seed_only():
    hidden = tokens()
    k, v = pipeline.project_kv(hidden, seed=3)
    assert k.shape == v.shape == (1, pipeline.HEADS, 30, pipeline.HEAD_DIM)
    assert torch.equal(k, pipeline.project_kv(hidden, seed=3)[0])
    assert not torch.equal(k, pipeline.project_kv(hidden, seed=4)[0])
    assert not torch.equal(k, v)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 576])
def test_picture_of_tokens_without_a_photograph(count):
    rows, columns = picture.grid_of(count)
    assert rows * columns >= count > rows * columns - columns
    scores = np.full(rows * columns, np.nan, np.float32)
    kept = np.zeros(rows * columns, bool)
    kept[0] = True
    png = picture.draw("t", "n", None, kept.reshape(rows, columns), scores.reshape(rows, columns))
    Image.open(io.BytesIO(png)).load()


def test_names_stay_unique():
    taken: set[str] = set()
    assert [demo_run._unused(name, taken) for name in ("a", "b", "a", "a-2", "a")] == ["a", "b", "a-2", "a-2-2", "a-3"]
