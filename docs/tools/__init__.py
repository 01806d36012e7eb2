"""What is generated in the documentation.

`python -m docs.tools` rewrites the parts between markers and the pictures that are committed; `hooks` and `reference`
take part in `make docs`, which adds the pages made from docstrings.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
IMAGES = DOCS / "images"


def between(text: str, name: str) -> str:
    """What stands between `<!-- name -->` and `<!-- end of name -->`."""
    return _span(text, name).group(2)


def replace(text: str, name: str, body: str) -> str:
    found = _span(text, name)
    return f"{text[:found.start(2)]}\n{body.strip()}\n{text[found.end(2):]}"


def _span(text: str, name: str) -> re.Match[str]:
    found = re.search(rf"(<!-- {re.escape(name)} -->)(.*?)(<!-- end of {re.escape(name)} -->)", text, re.S)
    if found is None:
        raise ValueError(f"the page has no markers `{name}`, allowed: <!-- {name} --> .. <!-- end of {name} -->")
    return found


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def short(commit: str) -> str:
    """A commit in 12 digits; "-dirty" stays."""
    name, _, rest = commit.partition("-")
    return name[:12] + (f"-{rest}" if rest else "")


def digest(value: Any) -> str:
    """Of the data that a picture was drawn from; the picture carries it, so that a test can tell an old one."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
