"""The model behind launch parameters that were not measured: what it predicts by hand, and that its tables say so."""

import json

import pytest

from benchmarks import tune_model
from benchmarks.tune_model import Corner, Gpu, seconds
from vtkernels.tuning import lookup

GPU = Gpu("sm_90", 100, 1e12, 1e15)
CORNER = Corner(latency=1e-6, l2=4e12, port=100e9, hmma=0.5, hgmma=0.8)
CONFIG = {"block_n": 16, "block_p": 64, "block_d": 64, "num_warps": 8, "num_stages": 3}


def figures(**changes):
    return {"warps": 8, "registers": 128, "shared": 0, "stack": 0, "local": 0, "matrix": {"HMMA.16816.F32": 1},
            "loop": {"bytes": 1280, "flops": 16384}, **changes}


def test_few_programs_are_bound_by_the_bytes_in_flight():
    # 2 of 3 stages of 8 warps in flight: 20,480 bytes a microsecond; 10 trips of 10,240 bytes on each of 36 programs.
    assert seconds(CONFIG, figures(), (576, 640, 64), GPU, CORNER) == pytest.approx(10 * 10240 / 20480e6)


def test_many_programs_are_bound_by_the_l2():
    # 200 programs, two on each of 100 multiprocessors: 40,960 bytes in flight, and 40 GB/s of the L2 for each.
    assert seconds(CONFIG, figures(), (3200, 640, 64), GPU, CORNER) == pytest.approx(2 * 10 * 10240 / 40e9)


def test_products_and_device_memory_are_bounds_too():
    busy = figures(loop={"bytes": 1280, "flops": 10**8})
    assert seconds(CONFIG, busy, (16, 64, 64), GPU, CORNER) == pytest.approx(8e8 / (1e15 * 0.5 / 100))
    wide = figures(loop={"bytes": 1, "flops": 1})
    assert seconds(CONFIG, wide, (16, 64, 64), GPU, CORNER) >= (16 + 64) * 64 * 2 / 1e12


def test_a_kernel_that_spills_never_wins():
    assert seconds(CONFIG, figures(stack=8), (576, 640, 64), GPU, CORNER) == float("inf")
    assert seconds(CONFIG, figures(shared=228 * 1024), (576, 640, 64), GPU, CORNER) == float("inf")


def test_an_advantage_is_a_range_over_all_corners():
    base, better = (CONFIG, figures()), (CONFIG, figures(loop={"bytes": 640, "flops": 8192}))
    assert tune_model.advantage(base, base, (576, 4096, 64), GPU) == (1.0, 1.0)
    least, most = tune_model.advantage(base, better, (576, 4096, 64), GPU)
    assert 1.0 <= least <= most


@pytest.mark.parametrize("path", sorted(p for p in lookup.SHIPPED.glob("*/*.json") if p.parent.name != "default"),
                         ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_tables_by_model_say_so_and_add_to_the_default(path):
    assert path.parent.name in tune_model.GPUS
    assert json.loads(path.read_text())["source"] == "model"
    default = lookup.load(lookup.SHIPPED / "default" / path.name, path.stem)
    entries = lookup.load(path, path.stem)
    own = entries[:-len(default)]
    assert entries[-len(default):] == default
    assert own
    for entry in own:
        shape = tuple(entry["match"][name] for name in "ndp")
        assert shape in tune_model.SHAPES
        scoring = {name: entry["config"][name] for name in lookup.SCORE}
        assert scoring in list(tune_model.candidates())
        assert tune_model.entry_of(path.stem, shape, scoring) == entry
