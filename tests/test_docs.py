"""The docs are true of the code: the environment table, the README's example, public docstrings."""

import doctest
import importlib
import json
import re
from pathlib import Path

import pytest
import torch

import vtkernels
from vtkernels import _dispatch, _env

ROOT = Path(__file__).parents[1]


def test_every_environment_variable_is_documented_and_read_in_one_place():
    documented = re.findall(r"^\| `(VTKERNELS_\w+)`", (ROOT / "docs/environment.md").read_text(), re.M)
    assert documented == [name for name, _, _ in _env.TABLE]
    assert len(documented) <= 7
    for file in (ROOT / "vtkernels").rglob("*.py"):
        if file.name != "_env.py":
            assert not re.search(r"environ(\.get\(|\[)\"VTKERNELS_", file.read_text()), file


@pytest.mark.parametrize("op", _dispatch.STAGES)
def test_docstring_examples(op):
    module = importlib.import_module(f"vtkernels.{_dispatch.STAGES[op]}.{op}")
    test = doctest.DocTestFinder().find(getattr(module, op), op, globs={"torch": torch, "vtkernels": vtkernels})[0]
    assert test.examples
    failures = []
    doctest.DocTestRunner().run(test, out=failures.append)
    assert not failures, "".join(failures)


def test_the_module_docstring_example():
    test = doctest.DocTestFinder().find(vtkernels.nn.PruneTopK, "PruneTopK",
                                        globs={"torch": torch, "vtkernels": vtkernels})[0]
    failures = []
    doctest.DocTestRunner().run(test, out=failures.append)
    assert not failures, "".join(failures)


def test_readme_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    scope: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)


@pytest.mark.parametrize("page", ["transformers"])
def test_examples_of_the_integrations_run(page):
    pytest.importorskip(page)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / f"docs/integrations/{page}.md").read_text(), re.S)
    torch.use_deterministic_algorithms(False)
    exec(compile(block, page, "exec"), {})


def test_the_table_of_methods_is_that_of_the_registry():
    from vtkernels.methods import _table

    assert _table.markdown() in (ROOT / "docs/methods.md").read_text()


def test_every_method_has_its_row_of_times():
    text = (ROOT / "docs/methods.md").read_text()
    (file,) = re.findall(r"\(\.\./(benchmarks/results/\S+/methods\.json)\)", text)
    rows = json.loads((ROOT / file).read_text())["rows"]
    assert [row["method"] for row in rows] == vtkernels.methods.list()
    for row in rows:
        assert row["check"] == "ok"
        assert (f"| `{row['method']}` | {row['shape']} | {row['ours_us'] / 1e3:.3f} | {row['loop_us'] / 1e3:.2f} | "
                f"{row['ratio']:.2f} |") in text


def test_readme_figures_are_those_of_the_result_file():
    text = (ROOT / "README.md").read_text()
    row = r"^\| (\d+)×(\d+)×(\d+), (\d+) \| (\w+) \| ([\d.]+) \| ([\d.]+) \((.+)\) \| ([\d.]+) \|$"
    quoted = re.findall(row, text, re.M)
    (file,) = re.findall(r"\((benchmarks/results/\S+\.json)\)", text)
    rows = json.loads((ROOT / file).read_text())["rows"]
    held = [(*(str(r["dims"][x]) for x in "BNDP"), r["dtype"], f"{r['ours']['median_us'] / 1e3:.2f}",
             f"{r['peers'][r['best_peer']]['median_us'] / 1e3:.2f}", r["best_peer"], f"{r['ratio']:.2f}") for r in rows]
    assert quoted == held


@pytest.mark.parametrize("op", _dispatch.STAGES)
def test_the_readme_names_every_op(op):
    table = re.findall(r"^\|.*\|$", (ROOT / "README.md").read_text(), re.M)
    assert any(f"`{op}`" in line for line in table)


def test_readme_figures_of_the_stages_are_those_of_the_result_files():
    text = (ROOT / "README.md").read_text()
    quoted = re.findall(r"^\| `(\w+)` \| (\S+) \| ([\d.]+) \| ([\d.]+) \((.+)\) \| ([\d.]+) \|$", text, re.M)
    folder = ROOT / re.findall(r"\((benchmarks/results/\S+)/prune_topk.json\)", text)[0]
    assert quoted

    def ms(us):
        return f"{us / 1e3:.3f}" if us < 1e3 else f"{us / 1e3:.2f}"

    for op in dict.fromkeys(q[0] for q in quoted):
        held = [(op, r["name"], ms(r["ours"]["median_us"]), ms(r["peers"][r["best_peer"]]["median_us"]), r["best_peer"],
                 f"{r['ratio']:.2f}") for r in json.loads((folder / f"{op}.json").read_text())["rows"]]
        assert [q for q in quoted if q[0] == op] == held


def test_readme_links_and_commands_exist():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (ROOT / target).exists(), target
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    for command in re.findall(r"`make ([\w-]+)", text):
        assert command in targets, command
