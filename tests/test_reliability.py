"""docs/reliability.md shows the recorded figures, and names only tests and commands that exist."""

import re

from tests import reliability


def test_the_table_is_that_of_the_recorded_figures():
    assert reliability.BEGIN + reliability.table() + reliability.END in reliability.PAGE.read_text()


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
