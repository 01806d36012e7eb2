"""Copies of the tree in which mutants are put and tested, one mutant at a time in each."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

from ..sanitize.build import ROOT
from .libraries import Library


class Place(NamedTuple):
    tree: Path
    changed: Path  # objects of the mutant
    clean: Path  # the tree without a mutant, with its libraries
    objects: Path  # of the clean tree


def make_tree(scratch: Path) -> Path:
    tree = scratch / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for folder in ("vtkernels", "tests", "csrc", "benchmarks", "examples", "docs"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in ("pyproject.toml", "README.md", "setup.py", "CMakeLists.txt"):
        shutil.copy2(ROOT / file, tree)
    return tree


def make_places(scratch: Path, count: int, libraries: Iterable[Library]) -> list[Place]:
    clean, objects = make_tree(scratch), scratch / "objects"
    for library in libraries:
        library.build(clean, objects)
    places = [Place(scratch / f"tree-{i}", scratch / f"changed-{i}", clean, objects) for i in range(count)]
    for place in places:
        shutil.rmtree(place.tree, ignore_errors=True)
        shutil.copytree(clean, place.tree)
    return places


Item = TypeVar("Item")
Where = TypeVar("Where")
Result = TypeVar("Result")


def spread(items: Iterable[Item], places: Sequence[Where],
           work: Callable[[Item, Where], Result]) -> Iterator[tuple[Item, Result]]:
    """Each item and what came of it, in the order in which they end. After an error no further one begins."""
    free: SimpleQueue[Where] = SimpleQueue()
    for place in places:
        free.put(place)

    def one(item: Item) -> Result:
        place = free.get()
        try:
            return work(item, place)
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(places)) as pool:
        under_way = {pool.submit(one, item): item for item in items}
        try:
            for done in as_completed(under_way):
                yield under_way[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
