"""What the vLLM plugin computes on the host, and its video scores, without vLLM. Engines: tests/vllm_engine."""

import json
import pickle
import re
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vtkernels import methods, prototypes
from vtkernels.integrations import vllm
from vtkernels.integrations.vllm import _config, _mrope, video

WIDTH = 16


def config(entry, **fields):
    return SimpleNamespace(model_type="llava", architectures=["LlavaForConditionalGeneration"],
                           get_text_config=lambda: SimpleNamespace(hidden_size=WIDTH), **{"vtkernels": entry, **fields})


def pruner(modality="image", needs_indices=True, **entry):
    return _config.read(config(entry), needs_indices=needs_indices)[modality]


@pytest.mark.parametrize("entry", [{"method": "divprune", "keep": 0.3}, {"method": "divprune", "keep": 7},
                                   {"method": "evs", "pruning_rate": 0.4}, {"method": "vidcom2", "keep": 0.2},
                                   {"method": "todre", "keep": 0.9}, {"method": "llavolta"}])
@pytest.mark.parametrize("grid", [(1, 8, 8), (2, 4, 8), (8, 4, 6)])
def test_counts_on_the_host_are_those_of_the_run(entry, grid):
    made, tokens = pruner(**entry), grid[0] * grid[1] * grid[2]
    (result,) = made([torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(0))], [grid])
    assert made.count(tokens, grid) == result.hidden.shape[1] == result.indices.shape[1]


def test_equal_images_run_as_one_batch_and_each_as_if_alone():
    made = pruner(method="divprune", keep=0.5)
    images = [torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(n + i)) for i, n in enumerate((12, 16, 12))]
    together = made(images, [None] * 3)
    for image, result in zip(images, together, strict=True):
        assert torch.equal(result.hidden, methods.get("divprune", keep=0.5)(methods.Inputs(hidden=image[None])).hidden)


def test_prototypes_come_from_a_file_and_must_have_the_model_s_width(tmp_path):
    path = tmp_path / "book.safetensors"
    torch.manual_seed(0)
    prototypes.save(path, torch.randn(4, WIDTH), source="random")
    made = pruner(method="redundancy_codebook", variant="fix_num", keep=0.25, prototypes=str(path))
    assert made.count(64, (1, 8, 8)) == 16
    moved = made.to(torch.device("meta"), torch.bfloat16).method.prototypes
    assert (moved.device.type, moved.dtype) == ("meta", torch.bfloat16)
    prototypes.save(path, torch.randn(4, 2 * WIDTH), source="random")
    with pytest.raises(ValueError, match="cannot run on 64 tokens"):
        pruner(method="redundancy_codebook", variant="fix_num", prototypes=str(path)).count(64, (1, 8, 8))


@pytest.mark.parametrize(("entry", "message"), [
    (None, "has None under 'vtkernels'"),
    ({}, "has {} under 'vtkernels'"),
    ({"keep": 0.5}, "has keep under 'vtkernels'"),
    ({"image": "divprune"}, "`hf_overrides` has 'divprune' under 'vtkernels'"),
    ({"method": "none"}, "`method` is 'none', allowed: .*divprune"),
    ({"method": "fastv"}, "needs decoder"),
    ({"method": "visionzip"}, "needs vision"),
    ({"method": "divprune", "share": 1}, "has no share, allowed: keep"),
    ({"method": "divprune", "keep": 0}, "`keep` is 0, "),
    ({"method": "divprune", "keep": 0.0}, "`keep` is 0.0, "),
    ({"method": "divprune", "keep": 1.01}, "`keep` is 1.01, "),
    ({"method": "divprune", "keep": -1}, "`keep` is -1, "),
    ({"method": "divprune", "keep": float("nan")}, "`keep` is nan, "),
    ({"method": "divprune", "keep": True}, "`keep` is True, "),
    ({"method": "divprune", "keep": "0.5"}, "`keep` is '0.5', "),
    ({"method": "evs", "pruning_rate": 1.0}, "`pruning_rate` is 1.0, "),
])
def test_wrong_entries_are_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        _config.read(config(entry))


@pytest.mark.parametrize(("entry", "message"), [
    ({"method": "timechat_online"}, "counts depend on the image"),
    ({"method": "pt_dit", "window": [1, 2, 2]}, "does not say where its tokens stood"),
    ({"method": "divprune", "keep": 0.001}, "makes 0 of 64 tokens"),
    ({"method": "vflowopt"}, "cannot run on 64 tokens"),
])
def test_methods_without_an_exact_count_or_places_are_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        pruner(**entry).count(64, (1, 8, 8))


def test_positions_are_those_of_the_unpruned_grid():
    # 3 words, an image of 2 x 3 of which 2 tokens stay, 2 words, a video of 3 frames of 2 x 2 of which 4 stay, 1 word
    items = [(3, 2, (1, 2, 3), 1.0), (7, 4, (3, 2, 2), 1.5)]
    got, delta = _mrope.positions(12, items)
    # the image reaches to 3 + 2, the video to 8 + int(2 * 1.5)
    assert got.tolist() == [[0, 1, 2, 3, 3, 6, 7, 8, 8, 8, 8, 12]] * 3
    assert delta == 13 - 12
    whole = _mrope.offsets(torch.arange(12), (3, 2, 2), 1.5)
    assert whole.tolist() == [[int(t * 1.5), h, w] for t in range(3) for h in range(2) for w in range(2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_offsets_travel_bit_for_bit_beside_the_features(dtype):
    away = torch.tensor([[0, 1, 2], [257, 4097, 65537], [2**31 - 1, 3, 0x7F81], [0x7FC1_0001, 1, 0]], dtype=torch.int32)
    tokens = torch.randn(4, 8).to(dtype)
    joined = _mrope.join_offsets(tokens, away)
    rows, back = _mrope.split_offsets([joined[:1], joined[1:]], 8)
    assert torch.equal(back, away)
    assert torch.equal(torch.cat(rows), tokens)


def test_prune_sets_architecture_and_entry_and_refuses_other_models():
    given = pickle.loads(pickle.dumps(vllm.prune("divprune", keep=0.25)))
    found = given(given(config(None)))  # vLLM may ask twice
    assert found.architectures == ["VtkernelsLlavaForConditionalGeneration"]
    assert found.vtkernels == {"method": "divprune", "keep": 0.25}
    dummy = SimpleNamespace(model_type="dummy_llava", architectures=[""])
    assert given(dummy).architectures == [""]
    with pytest.raises(ValueError, match=r"Qwen3VL.*allowed: Llava"):
        given(SimpleNamespace(model_type="qwen3_vl", architectures=["Qwen3VLForConditionalGeneration"]))
    with pytest.raises(ValueError, match="`method` is given beside"):
        vllm.prune("divprune", image={"method": "evs"})
    with pytest.raises(ValueError, match="keep without a method"):
        vllm.prune(keep=0.5)


def test_the_entry_point_is_declared():
    lines = (Path(__file__).parents[1] / "pyproject.toml").read_text().splitlines()
    at = lines.index('[project.entry-points."vllm.general_plugins"]')
    name, value = (part.strip(' "') for part in lines[at + 1].split("="))
    assert EntryPoint(name, value, "vllm.general_plugins").load() is vllm.register


def test_the_figures_of_the_docs_are_those_of_the_result_file():
    page = Path(__file__).parents[1] / "docs/integrations/vllm.md"
    quoted = re.findall(r"^\| (\d) \| `(\w+)` \| (.+) \|$", page.read_text(), re.M)
    (file,) = re.findall(r"\]\((\S+vllm_serving\.json)\)", page.read_text())
    rows = json.loads((page.parent / file).read_text())["rows"]
    held = [(str(r["concurrency"]), r["method"], " | ".join([
        f"{r['unpruned']['ttft_s']:.2f}", f"{r['pruned']['ttft_s']:.2f}", f"{r['ttft_times_faster']:.2f}",
        f"{r['unpruned']['tokens_per_s']:.1f}", f"{r['pruned']['tokens_per_s']:.1f}", f"{r['tokens_per_s_ratio']:.2f}",
        f"{100 * r['pruning_share_of_prefill']:.2f}"])) for r in rows]
    assert quoted == held
    (file,) = re.findall(r"\]\((\S+vllm_scores\.json)\)", page.read_text())
    rows = json.loads((page.parent / file).read_text())["rows"]
    for title, score in (("EVS", "evs"), ("VidCom2", "vidcom2")):
        cells = []
        for dtype in ("float32", "bfloat16"):
            found = [r["times_faster"] for r in rows if (r["score"], r["dtype"]) == (score, dtype)]
            cells.append(f"{min(found):.1f} to {max(found):.1f}")
        assert f"| {title} | {' | '.join(cells)} |" in page.read_text()


def evs_loop(x, frames, tokens, q):
    x = x.double().view(frames, tokens, -1)
    changed = [torch.full((tokens,), torch.inf)]
    changed += [1 - torch.nn.functional.cosine_similarity(a, b, dim=-1) for a, b in zip(x[1:], x[:-1], strict=True)]
    order = torch.cat(changed).argsort(descending=True, stable=True)
    return sorted(order[:max(tokens, int(frames * tokens * (1 - q)))].tolist())


def vidcom2_loop(x, frames, tokens, q):
    """Frame by frame, the total repaired one token at a time."""
    x = x.double()
    lowest = sorted(range(x.shape[1]), key=lambda c: float(x[:, c].var(unbiased=False)))[:max(1, x.shape[1] // 2)]
    x = torch.nn.functional.normalize(x[:, lowest], dim=1).view(frames, tokens, -1)
    gauss = lambda centre: sum((-(x - centre).square().sum(-1) / (2 * a)).exp() for a in (0.125, 0.25, 0.5, 1.0, 2.0))
    of_video = gauss(x.mean((0, 1)))
    similar = (of_video + gauss(x.mean(1, keepdim=True))).flatten().tolist()
    share = (-of_video.mean(1) / 0.01).softmax(0)
    kept = set()
    for frame in range(frames):
        count = round(min(1.0, float((1 - q) * (1 + share[frame] - share.mean()))) * tokens)
        ranked = sorted(range(frame * tokens, (frame + 1) * tokens), key=similar.__getitem__)
        kept |= set(ranked[:min(tokens, max(1, count))])
    total = max(frames, int(frames * tokens * (1 - q)))
    while len(kept) > total:
        kept.remove(max(kept, key=similar.__getitem__))
    while len(kept) < total:
        kept.add(min(set(range(frames * tokens)) - kept, key=similar.__getitem__))
    return sorted(kept)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("size", [(4, 6, 6), (9, 4, 10), (2, 16, 16), (1, 4, 4)])
@pytest.mark.parametrize(("ours", "loop"), [(video.evs_retention_mask, evs_loop),
                                            (video.vidcom2_retention_mask, vidcom2_loop)])
def test_video_masks_are_those_of_a_loop(ours, loop, size, q):
    frames, tokens = size[0], size[1] * size[2] // 4
    g = torch.Generator().manual_seed(size[1])
    x = torch.randn(frames, tokens, 24, generator=g) * torch.linspace(0.2, 2, frames)[:, None, None] + 1
    x[1:] += x[:-1].clone()
    x = x.view(-1, 24)
    if ours is video.vidcom2_retention_mask:
        x[3] = 0
    assert ours(x, size, 2, q).nonzero()[:, 0].tolist() == loop(x, frames, tokens, q)


def test_a_video_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"`video_embeds` is of shape \(7, 4\), allowed: \[8, D\]"):
        video.evs_retention_mask(torch.randn(7, 4), (2, 4, 4), 2, 0.5)
