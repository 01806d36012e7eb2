"""Drawn calls of every op, judged by the oracles and by comparing the backends; and the stored cases that once failed.

By hand, more of them: `python -m tests.fuzz`.
"""

import json
from pathlib import Path

import pytest
import torch

from vtkernels import _dispatch, testing

from . import judge
from .draws import Draws, shrink
from .known import KNOWN, known_reason

SEEDS = json.loads((Path(__file__).parent / "seeds.json").read_text())
CASES = 120  # 10,000 of each op in `make test-long`
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, of the hostile values


@pytest.mark.parametrize("op", judge.GENERATORS)
def test_a_slice(op):
    left_out = 0
    for seed in range(CASES):
        sample, choices = judge.sample_of(op, seed)
        if known_reason(op, sample):
            left_out += 1
            continue
        try:
            judge.judge(op, sample)
        except judge.Failure as failure:
            small, message = judge.smallest(op, choices, ("reference", "cpu"))
            call = judge.describe(judge.GENERATORS[op](Draws(given=small)))
            pytest.fail(f"python -m tests.fuzz {op} --first {seed} --cases 1 makes it again: {failure}\n"
                        f"made small, choices {small}: {message}\n  {call}", pytrace=False)
    if left_out:
        print(f"{op}: {left_out} of {CASES} cases not judged, see tests/fuzz/known.py")
    assert left_out < CASES // 5, "too many cases are left out to say much"


def test_every_op_has_a_generator():
    assert set(judge.GENERATORS) == set(_dispatch.STAGES) == set(testing.SAMPLES)


def expected(case: dict) -> list[pytest.MarkDecorator]:
    return [pytest.mark.xfail(reason=case["known"], strict=True)] if "known" in case else []


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{c['op']}-{i}", marks=expected(c)) for i, c in enumerate(SEEDS)])
def test_stored_cases(case):
    judge.judge(case["op"], judge.GENERATORS[case["op"]](Draws(given=case["choices"])))


def test_each_known_failure_is_stored_and_still_fails():
    stored = {case["known"] for case in SEEDS if "known" in case}
    assert stored == {known.reason for known in KNOWN}


def test_most_cases_are_not_empty_and_all_kinds_come_up():
    """What is drawn is worth judging: outputs with elements, several layouts, dtypes and hostile values."""
    for op in judge.GENERATORS:
        filled = layouts = hostile = 0
        for seed in range(100):
            sample, _ = judge.sample_of(op, seed)
            tensors = judge._tensors([*sample.args, *sample.kwargs.values()])
            filled += all(t.numel() for t in tensors)
            layouts += any(not t.is_contiguous() or t.storage_offset() for t in tensors)
            hostile += any(t.is_floating_point() and not t.float().isfinite().all() for t in tensors)
        assert filled >= 15, (op, filled)
        assert layouts >= 20, (op, layouts)
        assert hostile >= 1 or op in ("shuffle_tokens", "unshuffle_tokens", "dequantize_kv"), (op, hostile)



@pytest.mark.parametrize(("what", "spoil"), [
    ("another choice", lambda outputs: outputs.view(-1)[-1:].add_(1)),
    ("an unwritten element", lambda outputs: outputs.view(-1)[-1:].fill_(-1)),
])
def test_a_wrong_output_is_found_and_made_small(monkeypatch, what, spoil):
    run = testing.run

    def wrong(name, backend, *args, out, **kwargs):
        run(name, backend, *args, out=out, **kwargs)
        if backend == "cpu" and out.numel() and args[0].shape[1] >= 4:
            spoil(out)

    monkeypatch.setattr(testing, "run", wrong)
    failing = next(seed for seed in range(200) if judge.failure_of("select_topk", judge.sample_of(
        "select_topk", seed)[1], ("reference", "cpu")))
    _, choices = judge.sample_of("select_topk", failing)
    small, message = judge.smallest("select_topk", choices, ("reference", "cpu"))
    assert "on cpu" in message
    scores = judge.GENERATORS["select_topk"](Draws(given=small)).args[0]
    assert 4 <= scores.shape[1] <= 6, what
    assert scores.shape[0] == 1


def test_a_written_input_is_found(monkeypatch):
    run = testing.run

    def writes(name, backend, *args, **kwargs):
        run(name, backend, *args, **kwargs)
        args[0].zero_()

    monkeypatch.setattr(testing, "run", writes)
    sample = testing.Sample("", (torch.ones(1, 4), 2), {})
    with pytest.raises(judge.Failure, match="an input was written"):
        judge.judge("select_topk", sample)


def test_shrinking_finds_the_smallest_choices():
    assert shrink([9, 50, 3, 77, 8], lambda c: len(c) > 1 and c[1] >= 10) == [0, 10]


def test_a_case_is_the_same_each_time():
    for op in judge.GENERATORS:
        _, choices = judge.sample_of(op, 3)
        assert judge.describe(judge.sample_of(op, 3)[0]) == judge.describe(judge.GENERATORS[op](Draws(given=choices)))
