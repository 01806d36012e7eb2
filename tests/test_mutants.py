"""The mutants of `make mutate` still fit the tree: a mutant whose code is gone would prove nothing."""

from tests.mutants import __main__ as mutants


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
