"""The documentation is whole: pages in the navigation, public names in the reference, generated parts as made.

`make docs` builds it and checks its links.
"""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

import vtkernels
from docs import tools
from docs.tools import choosing, docstrings, gallery, performance, reference
from vtkernels import _dispatch, _library
from vtkernels.demo import images

ROOT = Path(__file__).parents[1]
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
PAGES = reference.pages()
PICTURES = {"astronaut", "china", "flower", "rocket"}


def leaves(value):
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [leaf for part in parts for leaf in leaves(part)]


def headings(page):
    return re.findall(r"^#+ .*\{ #([\w.]+)", PAGES[f"reference/{page}.md"], re.M)


def test_the_navigation_names_every_page_once():
    written = {path.relative_to(tools.DOCS).as_posix() for path in tools.DOCS.rglob("*.md")}
    assert sorted(leaves(SETTINGS["nav"])) == sorted(written | set(PAGES))


def test_nothing_is_asked_of_other_hosts():
    assert "://" not in (ROOT / "mkdocs.yml").read_text()
    assert SETTINGS["theme"]["font"] is False
    assert not {"repo_url", "site_url"} & set(SETTINGS)
    for page in tools.DOCS.rglob("*.md"):
        assert "```mermaid" not in page.read_text(), page  # its renderer would be loaded from elsewhere


def test_dead_links_and_anchors_stop_the_build():
    levels = {name: set(kind.values()) for name, kind in SETTINGS["validation"].items()}
    assert levels == {"nav": {"warn"}, "links": {"warn"}}
    assert "anchors" in SETTINGS["validation"]["links"]
    (command,) = re.findall(r"mkdocs build.*", (ROOT / "Makefile").read_text())
    assert command == "mkdocs build --strict"  # --quiet would hide the warnings from --strict
    assert "make docs" in (ROOT / ".ci/run").read_text().splitlines()


def test_links_to_the_repository_become_pages_of_the_site():
    pytest.importorskip("mkdocs")
    from docs.tools import hooks

    assert hooks._place("integrations/cpp.md", "../../examples/cpp_engine") == (
        ROOT / "examples/cpp_engine/README.md", "repository/examples/cpp_engine/README.md")
    assert hooks._place("repository/SECURITY.md", "docs/reliability.md")[1] == "reliability.md"
    assert hooks._place("methods.md", "seeds.md") == (ROOT / "docs/seeds.md", "seeds.md")
    with pytest.raises(ValueError, match="leaves the repository"):
        hooks._place("methods.md", "../../elsewhere")
    found = hooks.LINK.findall("[a](../x.py) ![b](c.png) [d](https://e.org) [f](#g) [h](i.md#j)")
    assert found == ["../x.py", "c.png", "i.md"]


@pytest.mark.parametrize(("html", "loads"), [
    ('<script src="https://e.org/x.js">', True), ("<img alt=a src=//e.org/a.png>", True),
    ('<link rel="stylesheet" href="https://e.org/x.css">', True), ("src: url('https://e.org/x.woff')", True),
    ('<script src="../x.js">', False), ('<a href="https://e.org">', False),
    ('<link rel="canonical" href="//e.org">', False),
])
def test_what_a_browser_would_load_from_elsewhere_is_found(html, loads):
    pytest.importorskip("mkdocs")
    from docs.tools import hooks

    assert bool(hooks.LOADED.search(html)) == loads


@pytest.mark.parametrize("op", _dispatch.STAGES)
def test_every_op_has_its_entry(op):
    stage = _dispatch.STAGES[op]
    assert headings(stage).count(op) == 1
    page = PAGES[f"reference/{stage}.md"]
    for schema in (op, f"{op}.out"):
        assert f"    {schema}{_library.SCHEMAS[schema]}\n" in page
    assert f"({stage}.md#{op})" in PAGES["reference/index.md"]
    for argument in inspect.signature(getattr(vtkernels, op)).parameters:
        assert re.search(rf"^- .*`{argument}`", page, re.M), argument


def test_every_op_of_torch_is_an_op_of_the_reference():
    assert {name.removesuffix(".out") for name in _library.SCHEMAS} == set(_dispatch.STAGES)
    assert len(_dispatch.STAGES) == 35


def test_every_public_name_has_its_entry():
    entries = [name for page in PAGES if page.startswith("reference/") for name in headings(Path(page).stem)]
    for name in vtkernels.__all__:
        assert name == "__version__" or name in entries, name
    for module in (vtkernels.methods, vtkernels.prototypes, vtkernels.nn, vtkernels.attend):
        for name, member in reference.members(module).items():
            assert inspect.ismodule(member) or f"{module.__name__.split('.')[-1]}.{name}" in entries, name


def test_every_method_has_its_entry():
    for name, method in vtkernels.methods.methods().items():
        assert headings("methods").count(name) == 1
        assert f"{method.info.title} ({method.info.source})" in PAGES["reference/methods.md"]


def test_a_docstring_becomes_lists_code_and_prose():
    def example(x, *, y=1):
        """Adds x < y. And more.

        Args:
            x: first,
                second line.
            y: other.

        Returns:
            Prose of
            two lines.

        Example:
            >>> example(1)  # doctest: +SKIP
            2
        """

    assert docstrings.summary(example) == "Adds x < y."
    assert docstrings.markdown(example) == (
        "Adds x &lt; y. And more.\n\n**Arguments**\n\n- `x`: first,\n  second line.\n- `y`: other.\n\n"
        "**Returns**\n\nProse of\ntwo lines.\n\n**Example**\n\n```pycon\n>>> example(1)\n2\n```")
    assert docstrings.signature(example, "f") == "f(x, *, y=1)"


def test_the_comparison_of_methods_is_that_of_the_data():
    data, text = choosing.load(), choosing.PAGE.read_text()
    assert choosing.page(text, data) == text
    assert drawn_from(choosing.PICTURE) == tools.digest(choosing.picture_data(data))


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_the_comparison_takes_data_of_a_few_methods(kept, tmp_path):
    def row(method, where, query, keep, value):
        return {"method": method, "where": where, "policy": "preserve", "keep": keep, "kept": 16.0,
                "query_aware": query, "accuracy": {"mean": {"mean": value}}, "kv_bytes": 1000, "prefill_ms": 1.0}

    rows = [row("divprune", "outer", False, 0.25, 0.6), row("todre", "outer", False, 0.25, 0.7),
            row("prumerge", "outer", False, None, 0.5)][:kept]
    data = {"rows": rows, "full": row("full", "", False, 1, 0.8), "keep": [0.25], "learned": ["presence"], "seeds": [0],
            "visual_tokens": 64, "command": "c", "machine": "m", "commit": "x", "date": "d"}
    text = choosing.methods_table(data)
    names = re.findall(r"^\| `?(\w+)`? \|", text, re.M)
    assert [n for n in names if n != "method"] == ["unpruned", "todre", "divprune", "prumerge"][:1] + (
        [[], ["divprune"], [], ["todre", "divprune", "prumerge"]][kept])
    choosing.draw(data, tmp_path / "picture.png")
    tokens_alone = choosing.leaf_text(data, choosing.TREE[-1])
    assert ("todre: 87 / – %\ndivprune: 75 / – %" in tokens_alone) == (kept == 3)
    assert "not measured" in choosing.leaf_text(data, choosing.TREE[0])


def test_figures_of_speed_are_those_of_the_result_files():
    text = performance.PAGE.read_text()
    assert performance.page(text) == text
    assert drawn_from(performance.PICTURE) == tools.digest(performance.picture_data())


def test_the_gallery_shows_what_the_methods_keep():
    from PIL import Image

    page, held = (tools.DOCS / "gallery.md").read_text(), json.loads(gallery.KEPT.read_text())
    assert set(held) == PICTURES
    total = 0
    for name in PICTURES:
        path = tools.IMAGES / f"gallery-{name}.jpg"
        total += path.stat().st_size
        assert path.stat().st_size <= 150_000
        assert f"(images/{path.name})" in page
        with Image.open(path) as picture:
            assert picture.info["comment"].decode() == tools.digest(gallery.settings(name))
    assert total <= 1_500_000
    for method in gallery.METHODS:
        assert f"reference/methods.md#{method})" in page


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_the_gallery_is_of_these_kernels(name):
    (path,) = [p for p in images.packaged() if p.stem == name]
    hidden = gallery.tokens(images.read(path))
    for method, row in json.loads(gallery.KEPT.read_text())[name].items():
        for keep, bits in zip(gallery.KEEP, row, strict=True):
            shown = torch.tensor([int(b) for b in f"{int(bits, 16):0{hidden.shape[1]}b}"]).bool()
            kept = gallery.assignment(method, hidden, keep) >= 0
            assert shown.sum() == kept.sum() == round(keep * hidden.shape[1])
            # Another CPU may round scores otherwise, and greedy picks follow a near tie.
            assert (shown & kept).sum() >= 0.9 * kept.sum(), (method, keep)


def test_the_quick_start_runs():
    blocks = re.findall(r"```python\n(.*?)```", (tools.DOCS / "quickstart.md").read_text(), re.S)
    assert len(blocks) == 4
    scope: dict = {}
    for block in blocks:
        exec(compile(block, "quickstart.md", "exec"), scope)


def drawn_from(path):
    from PIL import Image

    with Image.open(path) as picture:
        return picture.info["Description"]
