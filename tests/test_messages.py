"""Every argument of every op made wrong in every way its kind allows: refused with one clear error, or taken.

Both backends must decide alike. Together with tests/test_bad_input.py this is what makes every check fail once;
`make coverage` lists those that never did.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from vtkernels import _dispatch, _library, testing

DTYPES = (torch.float32, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool,
          torch.complex64)
BACKENDS = ("reference", "cpu")
LOOPS = {"iterations"}  # a count that the op takes at its word
MESSAGE = r"(?s){op}: `[a-z]\w*(\[\d+\])?(, [a-z]\w*)?` is .+, allowed: .+"


def chosen(op: str) -> list[testing.Sample]:
    """Small samples that give every optional argument once."""
    given: set[str] = set()
    found = []
    for sample in sorted(testing.SAMPLES[op](), key=lambda s: (-len(s.kwargs), cost(s))):
        new = {name for name, value in sample.kwargs.items() if value is not None} - given
        if 0 < cost(sample) < 20_000 and (new or not found) and 0 not in sample.args[0][0].shape:
            given |= new
            found.append(sample)
    assert found, f"{op} has no small sample"
    parameters = list(inspect.signature(_library.CONTRACTS[op]).parameters)
    if "prototype_rnorm" in parameters:
        place = parameters.index("prototypes")
        one = next(s for s in testing.SAMPLES[op]() if 0 < cost(s) < 20_000 and s.args[place].dim() == 2
                   and s.kwargs.get("metric", "cosine") == "cosine")
        norms = torch.ones(one.args[place].shape[0])
        found.append(one._replace(kwargs={**one.kwargs, "prototype_rnorm": norms}))
    return found


def cost(sample: testing.Sample) -> int:
    values = [*sample.args, *sample.kwargs.values()]
    return sum(t.numel() for v in values for t in (v if isinstance(v, (list, tuple)) else [v]) if isinstance(t, Tensor))


def wrong_tensors(t: Tensor) -> Iterator[tuple[str, Tensor]]:
    for dtype in DTYPES:
        if dtype != t.dtype:
            yield str(dtype), t.to(dtype)
    yield "another dimension", t[None]
    yield "on meta", t.to("meta")
    if t.dim():
        yield "one dimension less", t.select(0, 0) if t.shape[0] else t.sum(0)
        yield "every other element", t.repeat_interleave(2, -1)[..., ::2]
        if t.dtype != torch.bool:
            yield "sparse", t.to_sparse()
    for dim in range(t.dim()):
        yield f"longer in dimension {dim}", torch.cat([t, t.narrow(dim, 0, min(1, t.shape[dim]))], dim)
        yield f"empty in dimension {dim}", t.narrow(dim, 0, 0)


def wrong(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        yield from wrong_tensors(value)
    elif isinstance(value, (list, tuple)):
        yield "empty", []
        yield "with its first entry twice", [*value, value[0]]
        for what, first in wrong(name, value[0]):
            yield f"first {what}", [first, *value[1:]]
            yield f"last {what}", [*value, first]
    elif isinstance(value, str):
        yield "another word", "nonsense"
    elif isinstance(value, float):
        for number in (float("nan"), float("inf"), -1.0, 2.0):
            yield str(number), number
    elif isinstance(value, int) and not isinstance(value, bool):
        for number in (-2, -1, 0, 3, *(() if name in LOOPS else (2**40,))):
            yield str(number), number


def changed(op: str, sample: testing.Sample) -> Iterator[tuple[str, tuple, dict[str, Any]]]:
    """The call with one argument made wrong, each in turn. Options that the sample leaves out have their defaults."""
    parameters = inspect.signature(_library.CONTRACTS[op]).parameters
    defaults = {name: p.default for name, p in parameters.items()
                if p.kind is p.KEYWORD_ONLY and p.default is not p.empty and p.default is not None}
    for i, (name, value) in enumerate(zip(parameters, sample.args, strict=False)):
        for what, other in wrong(name, value):
            if i == 0 and "meta" in what:
                continue  # then it is the others that lie elsewhere, if there are any
            yield f"{name} {what}", (*sample.args[:i], other, *sample.args[i + 1:]), sample.kwargs
    for name, value in {**defaults, **sample.kwargs}.items():
        for what, other in wrong(name, value):
            yield f"{name} {what}", sample.args, {**sample.kwargs, name: other}


def outputs(spec: Any) -> Any:
    if isinstance(spec, _library.Spec):
        return torch.zeros(spec.shape, dtype=spec.dtype)
    return [outputs(s) for s in spec]


def refusal(name: str, backend: str, args: tuple, kwargs: dict[str, Any]) -> str | None:
    """The argument that the error names, None where the call is taken; "?" before an error of another form."""
    copies = tuple([t.clone() if isinstance(t, Tensor) else t for t in arg] if isinstance(arg, list) else arg
                   for arg in args)
    try:
        _dispatch.function(name, backend)(*copies, **kwargs)
    except Exception as error:
        message = str(error)
        known = isinstance(error, (ValueError, TypeError, RuntimeError))
        if known and re.fullmatch(MESSAGE.format(op=re.escape(name)), message):
            return message.split("`")[1]
        return f"?{type(error).__name__}: {message[:300]}"
    return None


def differences(name: str, calls: Iterator[tuple[str, tuple, dict[str, Any]]]) -> tuple[int, list[str]]:
    """How many calls are refused, and what is wrong: an unclear error, or one backend that takes what the other does
    not."""
    refused, problems = 0, []
    for what, args, kwargs in calls:
        named = {backend: refusal(name, backend, args, kwargs) for backend in BACKENDS}
        refused += named["cpu"] is not None
        unclear = any(n is not None and n.startswith("?") for n in named.values())
        if unclear or (named["cpu"] is None) != (named["reference"] is None):
            problems.append(f"{name}: {what}: {named}")
    return refused, problems


@pytest.mark.parametrize("op", testing.SAMPLES)
@pytest.mark.filterwarnings("ignore")
def test_wrong_arguments(op):
    for sample in chosen(op):
        refused, problems = differences(op, changed(op, sample))
        assert not problems, "\n".join(problems)
        assert refused


@pytest.mark.parametrize("op", testing.SAMPLES)
@pytest.mark.filterwarnings("ignore")
def test_wrong_buffers(op):
    sample = chosen(op)[0]
    names, specs = _library.OUT_ARGS[op], _library.CONTRACTS[op](*sample.args, **sample.kwargs)
    outs = dict(zip(names, outputs(specs if len(names) > 1 else (specs,)[:len(names)]), strict=True))
    if op in _library.STATUS:
        outs["status"] = torch.zeros(1, dtype=torch.int32)
    if op in _library.WORKSPACE:
        outs["workspace"] = torch.zeros(_library.WORKSPACE[op](*sample.args, **sample.kwargs), dtype=torch.int32)
    calls = ((f"{name} {what}", sample.args, {**sample.kwargs, **outs, name: other}) for name, value in outs.items()
             if not (isinstance(value, list) and not value) for what, other in wrong(name, value))
    _, problems = differences(f"{op}.out", calls)
    assert not problems, "\n".join(problems)


SCORES = torch.zeros(2, 5)
TOKENS = torch.zeros(2, 5, 3)
CACHE = torch.zeros(2, 3, 5, 4)  # [B, H, N, d]
TWO = [
    # What is wrong only with another argument, or with the strides of a buffer.
    ("select_diverse", (TOKENS, 2), {"relevance": SCORES}, "relevance"),
    ("select_diverse", (TOKENS, 2), {"seeds": torch.zeros(2, 1, dtype=torch.int64), "objective": "dpp"}, "seeds"),
    ("row_statistics", (torch.tensor(1.0),), {}, "rows"),
    ("gather_kv_inplace", ([CACHE], torch.zeros(2, 6, dtype=torch.int64)), {}, "indices"),
    ("gather_kv", ([CACHE], torch.zeros(2, 2, 4, dtype=torch.int64)), {}, "indices"),
    ("attention_scores", (CACHE, CACHE), {"causal_offset": 1}, "causal_offset"),
    ("attention_scores", (CACHE, CACHE), {"logits": True, "lse": torch.zeros(2, 3, 5)}, "lse"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("op", "args", "kwargs", "named"), TWO)
def test_arguments_that_do_not_fit_together(backend, op, args, kwargs, named):
    assert refusal(op, backend, args, kwargs) == named


def test_strides_that_the_cpu_kernels_cannot_write():
    """The reference copies its results into any buffers; the kernels write rows, and refuse what is none."""
    indices = torch.zeros(2, 2, dtype=torch.int64)
    padded = {"out": [torch.zeros(2, 2, 3, 8)[..., :4]]}
    assert refusal("gather_tokens.out", "cpu", ([torch.zeros(2, 5, 3, 4)], indices), padded) == "out[0]"
    other = {"scores": torch.zeros(2, 5, 2), "indices": torch.zeros(5, 2, 2, dtype=torch.int64).transpose(0, 1)}
    assert refusal("prototype_topm.out", "cpu", (TOKENS, torch.ones(3, 3), 2), other) == "indices"


@pytest.mark.parametrize("value", [None, 1.5, "tensor", [torch.zeros(2)]])
def test_a_launcher_called_from_python_takes_tensors_only(value):
    """torch's schemas refuse these before any kernel; callers of a backend's own function have the contract."""
    with pytest.raises(TypeError, match=r"select_topk: `scores` is \w+, allowed: a torch\.Tensor"):
        _dispatch.function("select_topk", "reference")(value, 1)
