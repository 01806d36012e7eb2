"""merge_tokens in the interpreter."""

import pytest
import torch
from helpers import run_out, samples

from vtkernels import _library, _triton, testing

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@samples("merge_tokens")
def test_merge_tokens(sample, monkeypatch):
    launched = []
    launch = _triton.launch

    def recorded(*args, **options):
        launched.append(args[0])
        launch(*args, **options)

    monkeypatch.setattr(_triton, "launch", recorded)
    status = torch.zeros(1, dtype=torch.int32)
    outs = run_out("merge_tokens", "triton", sample, status=status)
    assert bool(launched) == (outs[1].numel() > 0)
    testing.assert_merge_tokens(outs, *sample.args, **sample.kwargs)
    assert status.item() == (_library.STATUS_BAD_INDEX if "out-of-range" in sample.name else 0)
