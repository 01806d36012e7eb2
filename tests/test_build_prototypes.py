"""Codebooks from images and a tiny model: each step against plain loops, interruptions, shared-out runs, bad input."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import tiny_processors
import torch

import vtkernels
from vtkernels import prototypes
from vtkernels.__main__ import _parser, main
from vtkernels.integrations.transformers import apply
from vtkernels.prototypes import CodebookError, Selection, _measure, _probe, _shards, build, density, io, load, merge
from vtkernels.prototypes._vlm import Vlm
from vtkernels.select.cluster_density_peaks.reference import cluster_density_peaks as reference

Image = pytest.importorskip("PIL.Image")
FAMILIES = ("llava", "qwen2_5_vl")
SELECTION = Selection("60%", "70%", image_clusters=4, max_members=4, clusters=3, min_images=3)
SETTINGS: dict[str, Any] = {"question": "w3 w4", "probes": 10, "batch": 3, "images_per_shard": 3, "show": False}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    folder, g = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(8):
        small = Image.fromarray(g.integers(0, 256, (5, 6 + i % 2, 3), dtype=np.uint8))
        small.resize((100 + 10 * i, 84), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


def parts(family: str) -> tuple[Any, Any]:
    return tiny_models.model(family), tiny_processors.processor(family)


@pytest.fixture(scope="module", params=FAMILIES)
def run(request, photos, tmp_path_factory) -> tuple[str, Path, Path]:
    """A family, its codebook, its shards."""
    folder = tmp_path_factory.mktemp(request.param)
    build(*parts(request.param), photos, folder / "book", selection=SELECTION, shards=folder / "shards", **SETTINGS)
    return request.param, folder / "book", folder / "shards"


def answer(model: Any, family: str, seen: Any, visual: list[torch.Tensor], grid: tuple[int, int]) -> np.ndarray:
    """First logits after one prompt, through the model's own forward."""
    embed = model.get_input_embeddings()
    rows = torch.cat([embed(seen.prefix), torch.stack(visual), embed(seen.suffix)])[None]
    a, n, b = len(seen.prefix), len(visual), len(seen.suffix)
    places = [[i] * 3 for i in range(a)]
    if family == "llava":
        places += [[a + i] * 3 for i in range(n + b)]
    else:
        places += [[a, a + i // grid[1], a + i % grid[1]] for i in range(n)]
        places += [[a + max(grid) + i] * 3 for i in range(b)]
    positions = torch.tensor(places).T[:, None]
    with torch.no_grad():
        out = model(inputs_embeds=rows, position_ids=positions[0] if family == "llava" else positions)
    return out.logits[0, -1].double().numpy()


def naive_divergence(intact: np.ndarray, other: np.ndarray) -> float:
    top = np.argsort(-intact)[:10]
    p, q = (np.exp(x[top]) / np.exp(x[top]).sum() for x in (intact, other))
    m = (p + q) / 2
    return float((np.mean(m * np.log(m / p)) + np.mean(m * np.log(m / q))) / 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_probes_against_a_naive_loop(family, photos):
    model, processor = parts(family)
    vlm = Vlm(model, processor, question="w3 w4")
    seen = vlm.see(photos[1])
    rows, columns = seen.grid
    pad = model.get_input_embeddings().weight[0].detach()
    tokens = list(seen.features)
    got = _probe.measure(vlm, seen, torch.arange(len(tokens)), _probe.Probing(), 5)
    for t in range(len(tokens)):
        alone = np.sort(np.exp(answer(model, family, seen, [tokens[t]], (1, 1))))[::-1]
        near = [u for u in range(len(tokens))
                if abs(u // columns - t // columns) <= 1 and abs(u % columns - t % columns) <= 1]
        shape = (len({u // columns for u in near}), len({u % columns for u in near}))
        local = naive_divergence(answer(model, family, seen, [tokens[u] for u in near], shape),
                                 answer(model, family, seen, [pad if u == t else tokens[u] for u in near], shape))
        whole = naive_divergence(
            answer(model, family, seen, tokens, seen.grid),
            answer(model, family, seen, [pad if u in near else x for u, x in enumerate(tokens)], seen.grid))
        np.testing.assert_allclose(got[:, t], [alone[0] / alone[:50].sum(), local, whole], rtol=2e-3, atol=1e-9)
    assert rows * columns == len(tokens)


def test_probed_places():
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    assert _probe.probed_places(features, 40).tolist() == list(range(40))
    places = _probe.probed_places(features, 12).tolist()
    cosine = torch.nn.functional.cosine_similarity(features, features.mean(0)[None])
    ranks = sorted(cosine.argsort(descending=True).tolist().index(p) for p in places)
    assert ranks == [0, 1, 2, *(3 + i * 37 // 9 for i in range(9))]
    assert places == sorted(places)


def test_selection_against_a_naive_loop(run, tmp_path):
    """Thresholds by rank, clusters of each image, clusters of all candidates, distinct images; members unchanged."""
    _, file, shards = run
    book, files = load(file), _shards.files([shards])
    images = sorted((bytes(s.digest[i].tolist()), s.features[s.image == i], s.measures[:, s.image == i])
                    for s in (_shards.read(f)[0] for f in files) for i in range(len(s.names)))
    tokens = [(i, x, float(m[0]), float(m[1] + 16 * m[2])) for i, (_, f, ms) in enumerate(images)
              for x, m in zip(f, ms.T, strict=True)]
    assert len(images) == 8
    below = sorted(t[2] for t in tokens)[int(0.6 * len(tokens))]
    low = [t for t in tokens if t[2] < below]
    least = sorted(t[3] for t in low)[int(0.7 * len(low))]
    found = []
    for i, (_, features, _) in enumerate(images):
        label = reference(features[None], 4, neighbours=5)[0][0].tolist()
        found += [t for t, c in zip([t for t in tokens if t[0] == i], label, strict=True)
                  if label.count(c) <= 4 and t[2] < below and t[3] < least]
    label = reference(torch.stack([t[1] for t in found])[None], 3, neighbours=5)[0][0].tolist()
    sources = [{t[0] for t, c in zip(found, label, strict=True) if c == k} for k in range(3)]
    kept = [t[1] for t, c in zip(found, label, strict=True) if len(sources[c]) > 3]
    assert 0 < len(kept) < len(tokens)
    assert torch.equal(book.prototypes, torch.stack(kept))
    fewest = min(map(len, sources))
    kept = [t[1] for t, c in zip(found, label, strict=True) if len(sources[c]) > fewest]
    assert kept  # of the cluster with the fewest images none stays
    merge([shards], tmp_path / "book", selection=Selection("60%", "70%", 4, 4, 3, min_images=fewest))
    assert torch.equal(load(tmp_path / "book").prototypes, torch.stack(kept))


def test_cuts_change_nothing(run, photos, tmp_path):
    """With thresholds as numbers, most divergences are not even measured."""
    family, file, shards = run
    files = _shards.files([shards])
    probability, local, whole = torch.cat([_shards.read(f)[0].measures for f in files], 1)
    # Halfway between two tokens, since other batches round otherwise.
    most = _halfway(probability, 0.6)
    least = _halfway((local + 16 * whole)[probability < most], 0.7)
    numbers = Selection(most, least, 4, 4, 3, 3)
    build(*parts(family), photos, tmp_path / "book", selection=numbers, **SETTINGS)
    assert torch.equal(load(tmp_path / "book").prototypes, load(file).prototypes)
    joined = [_shards.read(f)[0] for f in _shards.files([tmp_path / "book.shards"])]
    assert torch.cat([shard.measures[1] for shard in joined]).isnan().any()
    for looser in ((1.0, least), (most, 1.0), (most, "50%")):
        with pytest.raises(CodebookError, match="beyond which these shards were not measured"):
            merge([tmp_path / "book.shards"], tmp_path / "more", selection=Selection(*looser, 4, 4, 3, 3))


def _halfway(values: torch.Tensor, share: float) -> float:
    count = int(share * len(values))
    return float(values.sort().values[count - 1:count + 1].mean())


def test_workers_and_merge_equal_one_run(run, photos, tmp_path):
    family, file, _ = run
    prototypes.probe(*parts(family), photos[5:], tmp_path / "b", **SETTINGS)
    for worker in (1, 0):
        prototypes.probe(*parts(family), photos[:6], tmp_path / "a", worker=worker, workers=2, **SETTINGS)
    merge([tmp_path / "b", *sorted((tmp_path / "a").iterdir())], tmp_path / "book", selection=SELECTION)
    assert load(tmp_path / "book").metadata["source"].startswith("8 images")  # one of them stood in both
    got, want = ({k: v for k, v in load(f).metadata.items() if k != "source"} for f in (tmp_path / "book", file))
    assert got == want
    assert (tmp_path / "book").read_bytes() == file.read_bytes()


def test_interrupted_run_goes_on(run, photos, tmp_path, monkeypatch):
    family, file, _ = run
    seen: list[str] = []
    see = Vlm.see

    def stops(self: Vlm, path: Path) -> Any:
        if len(seen) == 7:
            raise KeyboardInterrupt
        seen.append(path.name)
        return see(self, path)

    arguments = (*parts(family), photos, tmp_path / "book")
    with monkeypatch.context() as patch:
        patch.setattr(Vlm, "see", stops)
        with pytest.raises(KeyboardInterrupt):
            build(*arguments, selection=SELECTION, **SETTINGS)
    shards = sorted((tmp_path / "book.shards").iterdir())
    assert len(shards) == 2
    assert not (tmp_path / "book").exists()
    shards[0].write_bytes(shards[0].read_bytes()[:-1])  # damaged: measured again
    again: list[str] = []
    monkeypatch.setattr(Vlm, "see", lambda self, path: again.append(path.name) or see(self, path))
    build(*arguments, selection=SELECTION, **SETTINGS)
    assert again == ["0.png", "1.png", "2.png", "6.png", "7.png"]
    assert (tmp_path / "book").read_bytes() == file.read_bytes()
    with pytest.raises(CodebookError, match=r"was made with probes '10', allowed: '9', as in this run"):
        build(*arguments, selection=SELECTION, **{**SETTINGS, "probes": 9})
    with pytest.raises(CodebookError, match="was made from other images"):
        build(*parts(family), photos[::-1], tmp_path / "book", selection=SELECTION, **SETTINGS)
    with pytest.raises(CodebookError, match="shards of another run"):
        build(*parts(family), photos[:6], tmp_path / "book", selection=SELECTION, **SETTINGS)


def test_full_disk_leaves_the_old_file_whole(run, tmp_path, monkeypatch):
    _, _, shards = run
    target = tmp_path / "book"
    target.write_bytes(b"old")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(io.os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{target}'"):
        merge([shards], target, selection=SELECTION)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["book"]


def test_codebook_works_where_it_is_used(run):
    family, file, _ = run
    model = tiny_models.model(family)
    book = load(file, model=model)
    hidden = torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(0))
    kept = vtkernels.prune_topk(hidden, book.prototypes, 5, prototype_rnorm=book.rnorm)[2]
    scores = torch.nn.functional.cosine_similarity(hidden[0][:, None], book.prototypes[None], dim=-1).amax(1)
    assert kept[0].tolist() == sorted(scores.argsort()[:5].tolist())
    inputs = tiny_models.prompt(family)
    before = inputs["input_ids"].shape[1]
    config = {"prototypes": book.prototypes, "variant": "fix_num", "keep": 2}
    with torch.no_grad(), apply(model, "redundancy_codebook", **config) as handle:
        model(**inputs)
        (columns,) = handle.kept
    assert columns.shape[1] == before - int((inputs["input_ids"] == tiny_models.IMAGE).sum()) + 2


def test_loading_refuses_another_model(run, tmp_path):
    family, file, _ = run
    model = tiny_models.model(family)
    other = tiny_models.model({"llava": "internvl", "qwen2_5_vl": "qwen3_vl"}[family])
    with pytest.raises(CodebookError, match=f"is for model_type '{family}', allowed: '{other.config.model_type}'"):
        load(file, model=other)
    with pytest.raises(CodebookError, match="is for layer 'projector', allowed: 'decoder 3'"):
        load(file, model=model, layer="decoder 3")
    io.save(tmp_path / "half", load(file).prototypes.half())
    with pytest.raises(CodebookError, match="tensor of float16, allowed: float32"):
        load(tmp_path / "half", model=model)
    assert load(tmp_path / "half", model=model, dtype=torch.float32).prototypes.dtype == torch.float32
    io.save(tmp_path / "narrow", torch.ones(2, 63))
    with pytest.raises(CodebookError, match="D = 63, allowed: D = 64"):
        load(tmp_path / "narrow", model=model)
    facts = load(file).metadata
    assert {"model", "model_type", "layer", "recipe", "sizes", "thresholds", "version", "sha256"} <= set(facts)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_that_cannot_be_used(family, photos, tmp_path):
    """Unreadable ones and features with NaN: skipped, counted, listed."""
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    processor = tiny_processors.with_nan(family, 130)  # the width of photos[3]
    many = [bad, tmp_path / "nowhere.png", *photos]
    built = build(tiny_models.model(family), processor, many, tmp_path / "book", selection=SELECTION, **SETTINGS)
    assert built.images == 7
    first, second, third = built.skipped
    assert first == f"{bad}: not an image that Pillow knows"
    assert "nowhere.png: FileNotFoundError" in second
    assert third == f"{photos[3]}: its features have NaN or infinite entries"
    few = Selection("60%", "70%", 4, 4, 3, min_images=7)
    with pytest.raises(CodebookError, match="`images` is 7 that can be used, allowed: more than 7"):
        merge([tmp_path / "book.shards"], tmp_path / "few", selection=few)
    prototypes.probe(tiny_models.model(family), processor, [bad, photos[3]], tmp_path / "none", **SETTINGS)
    with pytest.raises(CodebookError, match="without a usable image, of 2, allowed"):
        merge([tmp_path / "none"], tmp_path / "few", selection=few)
    assert not (tmp_path / "few").exists()


def test_numbers_and_models_that_do_not_fit(run, photos, tmp_path):
    family, _, shards = run
    for selection, says in (
            (Selection("60%", "70%", 4, 4, 3, 8), "`images` is 8 that can be used, allowed: more than 8"),
            (Selection("60%", "70%", 4, 4, 80, 3), "`clusters` is 80 with .*candidates"),
            (Selection("60%", "70%", 4, 4, 20, 6), "no cluster has tokens of more than 6 images")):
        with pytest.raises(CodebookError, match=says):
            merge([shards], tmp_path / "book", selection=selection)
    for bad in ({"max_probability": "0%"}, {"max_probability": "x%"}, {"max_divergence": -1.0}, {"clusters": 0}):
        with pytest.raises(CodebookError, match=f"`{next(iter(bad))}` is .*, allowed: "):
            Selection(**bad)
    with pytest.raises(CodebookError, match="`images` is 8 that can be used"):  # before anything is measured
        build(*parts(family), photos, tmp_path / "book")
    for bad in ({"batch": 0}, {"probes": 0}, {"worker": 2, "workers": 2}, {"prompt": "w3"}):
        with pytest.raises(CodebookError, match=f"`{next(iter(bad))}` is .*allowed: "):
            prototypes.probe(*parts(family), photos, tmp_path / "shards", **{**SETTINGS, **bad})
    text_only = torch.nn.Linear(2, 2)
    text_only.config = tiny_models.model("llava").config.text_config
    with pytest.raises(CodebookError, match="of type 'llama', allowed: a model with a vision tower"):
        prototypes.probe(text_only, parts(family)[1], photos, tmp_path / "shards")
    with pytest.raises(CodebookError, match="has no chat template"):
        prototypes.probe(tiny_models.model("llava"), tiny_processors.llava(None), photos, tmp_path / "shards")
    with pytest.raises(CodebookError, match="`recipe` is 'more', allowed: language, kmeans, density, mean"):
        merge([shards], tmp_path / "book", recipe="more")
    assert not (tmp_path / "book").exists()


def test_cheap_recipes(run, tmp_path):
    _, _, shards = run
    files = _shards.files([shards])
    joined = _shards.join([_shards.read(file)[0] for file in files], files)
    clusters = prototypes.Clusters(count=5, iterations=4, seed=3)
    wanted = {"kmeans": prototypes.build_kmeans(joined.features, 5, iterations=4, seed=3),
              "density": joined.features[reference(joined.features[None], 5)[1][0]], "mean": joined.mean}
    for recipe, want in wanted.items():
        built = merge([shards], tmp_path / recipe, recipe=recipe, clusters=clusters)
        book = load(tmp_path / recipe)
        torch.testing.assert_close(book.prototypes, want, rtol=0, atol=0)
        assert built.sizes == tuple(want.shape)
    with pytest.raises(CodebookError, match="`count` is 1000, allowed: 1 to "):
        merge([shards], tmp_path / "book", recipe="density", clusters=prototypes.Clusters(count=1000))


@pytest.mark.parametrize("kind", ["integers", "ties", "void", "all void", "half"])
def test_density_peaks_in_tiles(kind, monkeypatch):
    """Whole numbers, so that every sum is exact and the tiles must agree with the op to the bit."""
    g = torch.Generator().manual_seed(0)
    features = torch.randint(-3, 4, (61, 5), generator=g).float()
    if kind == "ties":
        features = features[torch.randint(0, 6, (61,), generator=g)]
    if kind == "void":
        features[[0, 7, 30, 60], 2] = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38])
    if kind == "all void":
        features[:] = torch.nan
    if kind == "half":
        features = features.half()
    monkeypatch.setattr(density, "WHOLE", 0)
    monkeypatch.setattr(density, "TILE", 8)
    for clusters, neighbours in ((1, 5), (9, 5), (61, 1), (20, 61)):
        label, centres = density.density_peaks(features, clusters, neighbours=neighbours)
        want = reference(features[None], clusters, neighbours=neighbours)
        assert torch.equal(centres, want[1][0])
        assert torch.equal(label, want[0][0])


def test_density_peaks_bad_input():
    rows = torch.ones(3, 2)
    for arguments, says in (((rows.int(), 1), "`features` is a tensor of int32"), ((rows[0], 1), "a 1-D tensor"),
                            ((rows, 4), "`clusters` is 4, allowed: 1 to 3"), ((rows[:0], 1), "`features` is empty")):
        with pytest.raises((TypeError, ValueError), match=says):
            prototypes.density_peaks(*arguments)
    with pytest.raises(ValueError, match="NaN or infinite"):
        prototypes.build_density_peaks(torch.full((3, 2), torch.nan), 1)


def test_damaged_and_foreign_shards(run, tmp_path):
    _, book, shards = run
    some = _shards.files([shards])[0]
    contents = bytearray(some.read_bytes())
    contents[-1] ^= 1
    (tmp_path / "flipped").write_bytes(contents)
    with pytest.raises(CodebookError, match="flipped: holds tensor bytes of sha256"):
        merge([tmp_path / "flipped"], tmp_path / "out", selection=SELECTION)
    with pytest.raises(CodebookError, match="is not a shard of probes"):
        merge([book], tmp_path / "out", selection=SELECTION)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CodebookError, match="holds no shard"):
        merge([tmp_path / "empty"], tmp_path / "out", selection=SELECTION)
    assert _measure._is_done(tmp_path / "flipped", "", {}) is False


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint as transformers saves it."""
    path = tmp_path_factory.mktemp("checkpoint")
    tiny_models.model("llava").save_pretrained(path)
    tiny_processors.llava().save_pretrained(path)
    return path


def test_command_line(folder, photos, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    images, step = str(photos[0].parent), "build-prototypes"
    settings = ["--max-probability", "60%", "--max-divergence", "70%", "--image-clusters", "4", "--max-members", "4",
                "--clusters", "3", "--min-images", "3"]
    source = ["--model", str(folder), "--images", images, "--probes", "10", "--question", "w3 w4"]
    assert main([step, *source, *settings, "--out", "book"]) == 0
    said = capsys.readouterr()
    book = load("book", model=tiny_models.model("llava"))
    assert f"{len(book.prototypes)} prototypes written to book" in said.out
    assert "images: 8 of 8" in said.err
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert main([step, "probe", *source, "--shards", "shards", "--images-per-shard", "2"]) == 0
    assert "4 of 4 shards are in shards" in capsys.readouterr().out
    assert main([step, "merge", "shards", *settings, "--out", "merged"]) == 0
    assert torch.equal(load("merged").prototypes, book.prototypes)
    assert main([step, "merge", "book", "merged", "--out", "both"]) == 0
    assert torch.equal(load("both").prototypes, book.prototypes)
    assert main([step, *source, "--recipe", "mean", "--out", "mean"]) == 0
    assert main([step, "merge", "book", "mean", "--out", "both"]) == 0
    assert torch.equal(load("both").prototypes, torch.cat([book.prototypes, load("mean").prototypes]))
    capsys.readouterr()
    assert main([step, "validate", "book", "--model", str(folder)]) == 0
    assert f"{len(book.prototypes)} x 64 float32, sha256 is right, fits" in capsys.readouterr().out
    assert main([step, "inspect", "book", "--shards", "shards", "--images", images, "--picture", "picture.png"]) == 0
    said = capsys.readouterr()
    assert f"{len(book.prototypes)} of {len(book.prototypes)} prototypes are the nearest of a token" in said.out
    assert "recipe: language-grounded" in said.out
    with Image.open("picture.png") as picture:
        assert len(picture.getcolors(1 << 24)) > 1000


def test_command_line_refuses(folder, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text"
    text.mkdir()
    tiny_models.model("llava").config.text_config.save_pretrained(text)
    io.save("narrow", torch.ones(2, 63), model_type="llava")
    image = str(photos[0])
    for arguments, says in (
            (["--model", str(folder)], "--model needs --images and --out"),
            (["--model", str(folder), "--features", "x"], "exclude each other"),
            (["--recipe", "mean"], "need --model or --features"),
            (["--features", "narrow", "--out", "x", "--recipe", "language"], "needs --model and --images"),
            (["--model", str(text), "--images", image, "--out", "x"], "of type 'llama', allowed: a model with"),
            (["--model", str(folder), "--images", image, "--out", "x"], "`images` is 1 that can be used"),
            (["--model", str(folder), "--images", "nowhere", "--out", "x"], "nowhere: no such file or folder"),
            (["validate", "narrow", "--model", str(folder)], "D = 63, allowed: D = 64"),
            (["merge", "narrow", "nowhere", "--out", "x"], "nowhere: cannot be read"),
            (["inspect", "narrow", "--picture", "x"], "--picture is without --shards or --images")):
        assert main(["build-prototypes", *arguments]) == 1
        assert says in capsys.readouterr().err
        assert not Path("x").exists()


def test_documented_commands_parse():
    page = (Path(__file__).parents[1] / "docs" / "codebooks.md").read_text()
    commands = [line.split("-m vtkernels ")[1] for line in page.splitlines() if "-m vtkernels build" in line
                and line.startswith(("python", "torchrun"))]
    assert len(commands) == 7
    for command in commands:
        assert _parser().parse_args(command.split()).command
