"""The retention experiment: data, the pruned model beside a masked one, resuming, the check, the committed table."""

import json
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch

from examples.retention import evaluate, plots, report, results, timing, train
from examples.retention.__main__ import RESULTS
from examples.retention.data import (
    ANSWER,
    DIGITS,
    GRID,
    ID,
    PHOTOGRAPHS,
    SIDE,
    TASKS,
    TOKENS,
    ask,
    digit_images,
    pages,
    photographs,
    scenes,
)
from examples.retention.methods import ENTRIES, KEEP, NOT_RUN, Baseline, count_of
from examples.retention.model import Model
from examples.retention.pruning import Visual, all_places, prefill, step
from vtkernels import methods

COMMITTED = RESULTS / "retention.json"


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture(scope="module")
def bench(model: Model) -> evaluate.Bench:
    return evaluate.Bench(model, 0, pictures=3)


def test_pictures_and_questions_repeat_and_differ_by_seed_and_split():
    first, again = scenes("test", 4, (1,)), scenes("test", 4, (1,))
    assert torch.equal(first.pixels, again.pixels)
    assert np.array_equal(first.digits, again.digits)
    for other in (scenes("test", 4, (2,)), scenes("train", 4, (1,))):
        assert not torch.equal(first.pixels, other.pixels)
    for task in TASKS:
        one, two = (ask(first, task, np.random.default_rng(0)) for _ in range(2))
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


def test_training_and_test_share_neither_digits_nor_regions():
    from skimage import data
    from sklearn.datasets import load_digits

    counts = [sum(map(len, digit_images(split))) for split in ("train", "test")]
    assert counts == [1400, 397]
    assert sum(counts) == len(load_digits().images)
    for name, left, right in zip(PHOTOGRAPHS, photographs("train"), photographs("test"), strict=True):
        # Side by side they are the photograph, so that no column belongs to both.
        assert left.shape[1] + right.shape[1] == getattr(data, name)().shape[1] // 2
        assert min(left.shape[1], right.shape[1]) >= SIDE


def test_labels_and_answers_tell_what_is_on_the_picture():
    of = scenes("train", 40, (0,))
    for b, (digits, colours) in enumerate(zip(of.digits, of.colours, strict=True)):
        shown = digits[digits >= 0]
        assert 1 <= len(shown) == len(set(shown)) == len(set(colours[colours >= 0])) <= 4
        labels = of.labels[b].view(GRID, GRID, 2)
        for place, digit in enumerate(digits):
            half = GRID // 2
            corner = labels[place // 2 * half:, place % 2 * half:][:half, :half]
            assert set(corner[..., 0].flatten().tolist()) - {-1} == ({digit} - {-1})
    answers = {task: ask(of, task, np.random.default_rng(0)) for task in TASKS}
    end = ID["<end>"]
    for b, digits in enumerate(of.digits):
        shown = [ID[DIGITS[d]] for d in digits[digits >= 0]]
        assert answers["counting"][1][b, 0] == ID[DIGITS[len(shown)]]
        assert answers["reading"][1][b].tolist() == shown + [end] * (ANSWER - len(shown))
        asked = answers["presence"][0][b, 2]
        assert answers["presence"][1][b, 0] == ID["yes" if int(asked) in shown else "no"]
    full = pages("train", 2, (0,))
    assert (full.labels[..., 0] >= 0).float().mean() > 3 * (of.labels[..., 0] >= 0).float().mean()


@pytest.mark.parametrize("policy", ["preserve", "pack"])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_a_pruned_prompt_is_the_whole_one_with_the_dropped_tokens_masked(model, bench, layer, policy):
    """The reference runs every layer on all tokens; from the cut on nobody sees what was dropped."""
    visual, words = bench.visual(None, None).repeat(len(TASKS)), bench.words
    kept = Baseline("random", 9, layer, seed=3)
    pruned, caches, _ = prefill(model, visual, words, policy, kept)
    indices = kept(methods.Inputs(visual.hidden, positions=visual.places)).indices
    batch, length = len(words), 1 + TOKENS + words.shape[1]
    stays = torch.ones(batch, length, dtype=torch.bool)
    stays[:, 1:1 + TOKENS] = torch.zeros(batch, TOKENS, dtype=torch.bool).scatter(1, indices, True)
    start = model.words.weight[ID["<bos>"]].expand(batch, 1, -1)
    x = torch.cat([start, visual.hidden, model.words(words)], 1)
    whole = torch.arange(length).expand(batch, -1)
    renumbered = (stays.cumsum(1) - 1).clamp(min=0)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    for i, block in enumerate(model.blocks):
        cut = i >= layer
        s = block.states(x, renumbered if cut and policy == "pack" else whole)
        # A dropped row may look at itself, so that its softmax is defined.
        mask = causal & (stays[:, None, None] | torch.eye(length, dtype=torch.bool)) if cut else causal
        x = block.finish(x, s.query, s.key, s.value, mask)
    torch.testing.assert_close(pruned, model.logits(x[:, -1]), rtol=1e-4, atol=1e-4)
    assert [c.key.shape[2] for c in caches] == [length if i < layer else length - TOKENS + 9 for i in range(4)]


@pytest.mark.parametrize("policy", ["preserve", "pack"])
def test_ragged_rows_give_what_each_gives_alone_and_words_follow_the_cache(model, bench, policy):
    places = all_places(2)[:, [3, 10, 40]]
    visual = Visual(torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)), places, torch.tensor([3, 1]))
    words = bench.words[:2]
    logits, caches, _ = prefill(model, visual, words[:, :-1], policy)
    logits = step(model, words[:, -1:], caches)
    for row, count in enumerate((3, 1)):
        alone = Visual(visual.hidden[row:row + 1, :count], places[row:row + 1, :count])
        torch.testing.assert_close(logits[row:row + 1], prefill(model, alone, words[row:row + 1], policy)[0],
                                   rtol=1e-4, atol=1e-4)


def test_every_method_of_the_package_runs_or_has_a_reason():
    run = {entry.name for entry in ENTRIES} - {"random", "uniform"}
    assert run | set(NOT_RUN) == set(methods.list())
    assert not run & set(NOT_RUN)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.where}-{e.name}")
def test_a_method_keeps_the_count_that_its_row_says(bench, entry):
    for keep in (None,) if entry.fixed else KEEP:
        found = bench.run(evaluate.Job(entry, keep, entry.policies[-1]))
        if found is None:
            assert entry.name in ("tome", "turbo")
            assert count_of(keep) < TOKENS / 8
        elif keep is None:
            assert 0 < found["kept"] < TOKENS
        else:
            assert found["kept"] == count_of(keep)
            assert found["kv_bytes"] < bench.run(evaluate.Job(None, None, "preserve"))["kv_bytes"]


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 2)
    monkeypatch.setattr(train, "PAGES", 2)
    monkeypatch.setattr(train, "BATCH", 2)
    whole = train.train(0, tmp_path / "a", 5, lambda text: None)

    def stop(text: str) -> None:
        if "step 4" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(0, tmp_path / "b", 5, stop)
    steps = []
    resumed = train.train(0, tmp_path / "b", 5, steps.append)
    assert len(steps) == 1
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match=r"seed0.pt` is a run of 5 steps, allowed: 6"):
        train.train(0, tmp_path / "b", 6)


@pytest.mark.long
def test_seeds_run_beside_each_other(tmp_path):
    options = {"--only": "train", "--seeds": "2", "--steps": "2", "--jobs": "2", "--work": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "examples.retention", *sum(options.items(), ())], check=True, cwd=report.ROOT)
    assert {path.name for path in tmp_path.iterdir()} == {"seed0.pt", "seed1.pt"}


def test_a_write_that_fails_leaves_the_old_state(tmp_path, monkeypatch):
    train.save(tmp_path / "seed0.pt", {"done": 1})
    monkeypatch.setattr(torch, "save", lambda state, file: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.save(tmp_path / "seed0.pt", {"done": 2})
    assert torch.load(tmp_path / "seed0.pt", weights_only=True) == {"done": 1}


def test_answers_that_are_there_are_not_asked_again(tmp_path, model, monkeypatch):
    monkeypatch.setattr(evaluate, "jobs", lambda: iter(some))
    some = [evaluate.Job(None, None, "preserve"), evaluate.Job(ENTRIES[0], 0.25, "pack")]
    first = evaluate.evaluate(model, 0, tmp_path, 2, lambda text: None)
    monkeypatch.setattr(evaluate.Bench, "run", lambda bench, job: pytest.fail("asked again"))
    assert evaluate.evaluate(model, 0, tmp_path, 2, lambda text: None) == first
    with pytest.raises(ValueError, match="has answers to 2 pictures, allowed: 3"):
        evaluate.evaluate(model, 0, tmp_path, 3)


def answers(values: dict[str, float]) -> dict[str, dict]:
    """Made-up answers of one seed to every job: `values` by the start of a key, else 0.5."""
    out = {}
    for job in evaluate.jobs():
        right = next((v for key, v in values.items() if job.key.startswith(key)), 0.5)
        out[job.key] = {"kept": 1.0, "kv_bytes": 1, "accuracy": dict.fromkeys(TASKS, right)}
    return out


def made_up() -> dict:
    times = {"ms": {job.key: 1.0 for job in evaluate.jobs()}, "quiet": True, "machine": "a", "batch": 1, "rounds": 1,
             "load": 0.0, "date": "today", "core_share": 1.0}
    seeds = {seed: {"rows": answers({"full": 0.9 + seed / 100, "outer/divprune": 0.4 + seed / 20})}
             for seed in range(3)}
    about = {"questions": 100, "command": "c", "steps": 1, "commit": "d", "machine": "m", "date": "today"}
    return results.summarise(seeds, times, about)


def test_a_task_that_was_not_learned_is_left_out_of_the_mean():
    full = [{"accuracy": {"presence": p, "counting": 0.9, "position": 0.5, "reading": 0.7, "framed": 0.8}}
            for p in (0.5, 0.7, 0.9)]
    assert results.learned(full) == ["counting", "reading", "framed"]
    assert results.with_mean(full[0]["accuracy"], results.learned(full))["mean"] == pytest.approx(0.8)
    data = made_up()
    assert report.unlearned(data) == ""
    assert "position" in report.unlearned(data | {"learned": ["counting"]})
    with pytest.raises(ValueError, match="answer no task better than by guessing"):
        results.learned([{"accuracy": dict.fromkeys(TASKS, 0.0)}] * 2)


def test_bands_are_t_intervals():
    band = results.band([0.4, 0.5, 0.6])
    half = 4.302653 * 0.1 / 3 ** 0.5  # t of 2 degrees of freedom
    assert band["mean"] == 0.5
    assert band["low"] == pytest.approx(0.5 - half, abs=1e-4)
    assert band["high"] == pytest.approx(0.5 + half, abs=1e-4)


def test_the_check_passes_within_the_bands_and_fails_outside():
    data = made_up()
    same = answers({"full": 0.91, "outer/divprune": 0.45})
    misses, total = results.outside(data, same)
    assert misses == []
    assert total == 6 * len(same)
    assert results.agrees(data, misses, total)
    worse, _ = results.outside(data, answers({"full": 0.7, "outer/divprune": 0.45}))
    assert len(worse) == 6
    assert not results.agrees(data, worse, total)
    few, _ = results.outside(data, answers({"full": 0.91, "outer/divprune": 0.95}))
    assert len(few) == 8 * 6
    assert results.agrees(data, few, total)  # one method of many, which 95 % bands allow for
    many, _ = results.outside(data, answers({"full": 0.91, "outer": 0.45}))
    assert not results.agrees(data, many, total)


def test_the_check_exits_with_1_when_a_seed_is_outside(tmp_path, monkeypatch, capsys):
    from examples.retention import __main__ as command

    (tmp_path / "retention.json").write_text(json.dumps(made_up()))
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    for full, code in ((0.91, 0), (0.5, 1)):
        rows = answers({"full": full, "outer/divprune": 0.45})
        monkeypatch.setattr(command, "run_seeds", lambda args, work, start, rows=rows: work.mkdir(parents=True) or
                            {0: {"rows": rows}})
        assert command.main(["--check", "--steps", "1", "--pictures", "100", "--work", str(tmp_path)]) == code
        assert ("NOT reproduced" in capsys.readouterr().out) == bool(code)
        assert not (tmp_path / "check").exists()
    with pytest.raises(SystemExit, match="`steps`, `pictures` is 2, 100, allowed: 1, 100"):
        command.check(Namespace(steps=2, pictures=100, work=tmp_path), 0.0)


def test_new_times_replace_old_ones_only():
    data = made_up()
    times = {"ms": {job.key: 3.0 if "divprune" in job.key else 2.0 for job in evaluate.jobs()}, "quiet": False}
    new = results.retimed(data, times)
    assert new["timing"] == {"quiet": False}
    assert new["full"]["prefill_ms"] == 2.0
    for old, row in zip(data["rows"], new["rows"], strict=True):
        assert row == {**old, "prefill_ms": 3.0 if row["method"] == "divprune" else 2.0}


def test_times_are_taken_of_every_row(model, monkeypatch):
    some = [job for job in evaluate.jobs() if job.entry is None or job.entry.name in ("fastv", "tome", "snapkv")]
    monkeypatch.setattr(timing, "jobs", lambda: iter(some))
    found = timing.measure(model, 1, lambda text: None)
    assert set(found["ms"]) == {job.key for job in some if job.policy == "preserve" and
                    not (job.entry and job.entry.name == "tome" and job.keep < 0.125)}
    assert all(ms > 0 for ms in found["ms"].values())


def test_the_committed_table_and_page_are_what_the_results_say(tmp_path):
    data = json.loads(COMMITTED.read_text())
    assert (RESULTS / "table.md").read_text() == report.table_file(data)
    assert report.PAGE.read_text() == report.page(report.PAGE.read_text(), data)
    assert (data["steps"], data["questions"]) == (train.STEPS, evaluate.PICTURES)
    assert len(data["seeds"]) == 5
    for row in (data["full"], *data["rows"]):
        for band in row["accuracy"].values():
            assert results.band(band["seeds"]) == band
    expected = {(j.entry.name, j.entry.where, j.keep, j.policy) for j in evaluate.jobs() if j.entry}
    unreachable = {(name, "outer", keep, policy) for name in ("tome", "turbo") for keep in (0.11, 0.05)
                   for policy in ("preserve", "pack")}
    assert {(r["method"], r["where"], r["keep"], r["policy"]) for r in data["rows"]} == expected - unreachable
    for task, chance in data["chance"].items():
        assert (data["full"]["accuracy"][task]["low"] > chance + 0.05) == (task in data["learned"])
    pictures = sorted(report.IMAGES.glob("*.png"))
    assert len(pictures) == 4
    assert all(path.stat().st_size < 300_000 for path in pictures)


def test_pictures_are_drawn_from_results(tmp_path):
    data = made_up()
    for name in ("methods", "tasks", "positions", "cost"):
        getattr(plots, name)(data, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
