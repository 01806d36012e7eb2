"""cell_attention and argmax_attention in the interpreter."""

import pytest
from helpers import flat, run_out

from vtkernels import _triton, testing

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize(("op", "sample"), [pytest.param(op, s, id=f"{op}-{s.name}") for op in (
    "cell_attention", "argmax_attention") for s in testing.SAMPLES[op]()])
def test_attend(op, sample, monkeypatch):
    launched = []
    launch = _triton.launch

    def recorded(*args, **options):
        launched.append(args[0])
        launch(*args, **options)

    monkeypatch.setattr(_triton, "launch", recorded)
    outs = run_out(op, "triton", sample)
    assert bool(launched) == any(t.numel() > 0 for t in flat(outs))
    testing.CHECKS[op](outs if len(outs) > 1 else outs[0], *sample.args, **sample.kwargs)
