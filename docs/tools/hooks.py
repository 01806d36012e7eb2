"""Hooks of MkDocs: pages made from docstrings, and files of the repository that pages link to.

A page of docs/ links to a file outside of docs/ by its relative path, as it stands in the repository. The site has a
copy of such a file under repository/; for a folder, of its README.md.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.tools import ROOT, reference

LINK = re.compile(r"(?<=\]\()(?!\w+:|/|#)([^)\s#]+)")
FOLDER = "repository"
# What a browser loads by itself when it shows a page.
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?((?:https?:)?//[^\"'> ]+)|"
                    r"<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload|icon))[^>]*\bhref=[\"']?"
                    r"((?:https?:)?//[^\"'> ]+)|url\([\"']?((?:https?:)?//[^\"')]+)")
METHOD_ROW = re.compile(r"^\| `(\w+)` \|", re.M)


def on_files(files: Files, config: Any) -> Files:
    for path, content in reference.pages().items():
        files.append(File.generated(config, path, content=content))
    pages = [file for file in files.documentation_pages() if file.abs_src_path]
    while pages:
        page = pages.pop()
        for target in LINK.findall(Path(page.abs_src_path).read_text()):
            source, uri = _place(page.src_uri, target)
            if uri.startswith(f"{FOLDER}/") and source.is_file() and files.get_file_from_path(uri) is None:
                copy = File.generated(config, uri, abs_src_path=str(source))
                files.append(copy)
                pages += [copy] if copy.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    if page.file.abs_src_path:
        here = PurePosixPath(page.file.src_uri).parent

        def relink(found: re.Match[str]) -> str:
            source, uri = _place(page.file.src_uri, found[1])
            return os.path.relpath(uri, here) if source.exists() else found[1]

        markdown = LINK.sub(relink, markdown)
    if page.file.src_uri == "methods.md":
        markdown = METHOD_ROW.sub(r"| [`\1`](reference/methods.md#\1) |", markdown)
    return markdown


def on_post_build(config: Any) -> None:
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css") and (found := LOADED.search(path.read_text())):
            raise PluginError(f"{path.name} loads {next(filter(None, found.groups()))}, allowed: files of the site")


def _place(page: str, target: str) -> tuple[Path, str]:
    """A link's file in the repository, and where the site has it."""
    inside = page.startswith(f"{FOLDER}/")
    folder = ROOT / PurePosixPath(page.removeprefix(f"{FOLDER}/") if inside else f"docs/{page}").parent
    source = Path(os.path.normpath(folder / target))
    if not source.is_relative_to(ROOT):
        raise ValueError(f"{page}: the link `{target}` leaves the repository")
    if (source / "README.md").is_file():
        source /= "README.md"
    path = source.relative_to(ROOT)
    uri = path.relative_to("docs") if path.is_relative_to("docs") else FOLDER / path
    return source, uri.as_posix()
