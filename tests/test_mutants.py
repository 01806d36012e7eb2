"""The mutants of `make mutate` still fit the tree: a mutant whose code is gone would prove nothing."""

import shutil
import subprocess
import threading
import time

import pytest

from tests.mutants import __main__ as mutants
from tests.mutants import libraries
from tests.mutants.mutant import Mutant
from tests.mutants.places import Place, spread
from tests.sanitize.build import object_of


def test_every_mutant_has_its_place():
    assert not mutants.misplaced()


def test_there_are_enough_and_each_is_named_once():
    assert len(mutants.MUTANTS) >= 60
    assert len({m.id for m in mutants.MUTANTS}) == len(mutants.MUTANTS)
    assert len({(m.file, m.code, m.replacement) for m in mutants.MUTANTS}) == len(mutants.MUTANTS)


def test_every_test_that_should_kill_is_there():
    for mutant in mutants.MUTANTS:
        paths = [t.partition("::")[0] for t in mutant.tests if t.startswith("tests/")]
        assert paths
        assert all((mutants.ROOT / path).exists() for path in paths), mutant.id


@pytest.mark.parametrize(("file", "library"), [
    ("csrc/cuda/gather.cu", libraries.SHIM), ("csrc/include/vtkernels/cuda/gather.cuh", libraries.SHIM),
    ("csrc/torch/cuda/gather.cpp", libraries.SHIM), ("csrc/torch/cpu/gather.cpp", libraries.CPU),
    ("csrc/include/vtkernels/key.h", libraries.CPU), ("vtkernels/_checks.py", None)])
def test_the_library_of_a_file(file, library):
    assert libraries.library_of(file) is library


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is missing")
def test_only_objects_that_include_the_changed_file_are_compiled(tmp_path):
    sources = {"a.cpp": '#include "h.h"\n', "b.cpp": "int b() { return 1; }\n"}
    header = "inline int h() { return 1; }\n"
    for name in ("clean", "tree"):
        (tmp_path / name).mkdir()
        for file, text in {**sources, "h.h": header}.items():
            (tmp_path / name / file).write_text(text)
    library = libraries.Library("lib.so", tuple(sources), ())
    library.build(tmp_path / "clean", tmp_path / "objects")
    (tmp_path / "tree/h.h").write_text(header.replace("1", "2"))
    library.rebuild("h.h", tmp_path / "clean", tmp_path / "objects", tmp_path / "tree", tmp_path / "changed")
    assert (tmp_path / "tree/lib.so").exists()
    assert list((tmp_path / "changed").glob("*.o")) == [object_of("a.cpp", tmp_path / "changed")]


def test_a_place_has_one_mutant_at_a_time():
    both, busy = threading.Barrier(2), set()

    def work(item, place):
        assert place not in busy
        busy.add(place)
        both.wait(timeout=60)
        busy.remove(place)
        return item * item

    assert dict(spread(range(10), ["a", "b"], work)) == {i: i * i for i in range(10)}


def test_nothing_begins_after_an_error():
    begun = []

    def work(item, place):
        begun.append(item)
        time.sleep(0.05 if item else 0)
        raise SystemExit(item)

    with pytest.raises(SystemExit):
        list(spread(range(100), ["a"], work))
    assert len(begun) < 100


@pytest.mark.parametrize(("code", "outcome"), [(1, mutants.KILLED), (-11, mutants.KILLED), (0, mutants.SURVIVED),
                                               (-9, mutants.SURVIVED), (-15, mutants.SURVIVED)])
def test_tests_that_were_ended_from_outside_kill_nothing(tmp_path, monkeypatch, code, outcome):
    mutant = Mutant("x", "a.py", "1", "2", ("tests/test_a.py",))
    place = Place(tmp_path / "tree", tmp_path, tmp_path / "clean", tmp_path)
    for tree in (place.tree, place.clean):
        tree.mkdir()
        (tree / "a.py").write_text("1")
    monkeypatch.setattr(mutants.Bench, "check_sound", lambda *_: None)
    monkeypatch.setattr(mutants.Bench, "pytest", lambda *_: subprocess.CompletedProcess([], code, stdout=""))
    assert mutants.Bench([mutant], 1, 1.0).run(mutant, place)[0] == outcome
    assert (place.tree / "a.py").read_text() == "1"
