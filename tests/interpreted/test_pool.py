"""pool_span, shuffle_tokens and unshuffle_tokens in the interpreter."""

import pytest
from helpers import run_out

from vtkernels import _triton, testing

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
OPS = ("pool_span", "shuffle_tokens", "unshuffle_tokens")


@pytest.mark.parametrize(("op", "sample"), [pytest.param(op, s, id=f"{op}-{s.name}")
                                            for op in OPS for s in testing.SAMPLES[op]()])
def test_every_token(op, sample, monkeypatch):
    launched = []
    launch = _triton.launch

    def recorded(*args, **options):
        launched.append(args[0])
        launch(*args, **options)

    monkeypatch.setattr(_triton, "launch", recorded)
    (out,) = run_out(op, "triton", sample)
    assert len(launched) == (out.numel() > 0)
    testing.CHECKS[op](out, *sample.args, **sample.kwargs)
