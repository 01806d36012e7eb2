"""docs/reliability.md shows the recorded figures, and names only tests and commands that exist."""

import re
import subprocess

from tests import reliability


def test_the_table_is_that_of_the_recorded_figures():
    assert reliability.BEGIN + reliability.table() + reliability.END in reliability.PAGE.read_text()


def test_a_figure_names_its_commit_and_a_second_one_does_not_make_it_dirty(tmp_path, monkeypatch):
    for name, path in (("ROOT", "."), ("FIGURES", "figures.json"), ("PAGE", "page.md")):
        monkeypatch.setattr(reliability, name, tmp_path / path)
    reliability.PAGE.write_text(reliability.BEGIN + reliability.END)
    (tmp_path / "source").write_text("as committed")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    reliability.record("one", "1 of 1", "python -m one --record")
    reliability.record("two", "2 of 2", "python -m two --record")
    page = reliability.PAGE.read_text()
    assert "| two | 2 of 2 | `python -m two` |" in page
    assert "dirty" not in page
    (tmp_path / "source").write_text("changed")
    assert reliability.commit().endswith("-dirty")


def test_what_the_pages_name_exists():
    for page in (reliability.PAGE, reliability.ROOT / "SECURITY.md"):
        text = page.read_text()
        for path in re.findall(r"`((?:tests|vtkernels|csrc|docs|benchmarks)/[\w./]+)`", text):
            assert (reliability.ROOT / path).exists(), path
        for module in re.findall(r"python -m (tests\.\w+)", text):
            assert (reliability.ROOT / module.replace(".", "/")).with_suffix(".py").exists() or (
                reliability.ROOT / module.replace(".", "/") / "__main__.py").exists(), module
        targets = set(re.findall(r"^(\w[\w-]*):", (reliability.ROOT / "Makefile").read_text(), re.M))
        for target in re.findall(r"`make ([\w-]+)", text):
            assert target in targets, target


def test_what_a_suite_leaves_out_is_printed(capsys):
    left_out = ["SKIPPED [2] tests/test_a.py:3: no such device", "XFAIL tests/test_a.py::b - known"]
    printed = ["..s", "= short test summary info =", *left_out, "5 passed, 2 skipped, 1 xfailed"]
    assert reliability.suite_figure("\n".join(printed)) == printed[-1]
    assert capsys.readouterr().out.splitlines() == [f"  {line}" for line in left_out]
