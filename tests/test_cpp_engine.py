"""The C++ engine of examples/cpp_engine: its Python module, and the program without Python."""

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from vtkernels import _native, prune_topk

EXAMPLE = Path(__file__).parents[1] / "examples/cpp_engine"
LAYERS, HEADS, DIM, WIDTH, PAGE = 3, 2, 32, 96, 8

pytestmark = [pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler"),
              pytest.mark.skipif(_native.load("_C_cpu") is not None, reason="the native library is not built")]


@pytest.fixture(scope="module")
def cache():
    """A folder for what is built, kept from run to run, for this checkout, torch and Python alone."""
    key = hashlib.sha256(f"{EXAMPLE} {torch.__version__} {sys.version} {os.getuid()}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"vtkernels-cpp-engine-{key}"
    for name in ("module", "program"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with open(folder / "taken", "w") as taken:
        fcntl.flock(taken, fcntl.LOCK_EX)
        (folder / "module/lock").unlink(missing_ok=True)  # torch's own lock outlives a build that was killed
        yield folder


@pytest.fixture(scope="module")
def module(cache):
    spec = importlib.util.spec_from_file_location("cpp_engine_build", EXAMPLE / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return build.load(str(cache / "module"))


class Prompt:
    def __init__(self, visual, before=5, after=6, seed=0):
        generator = torch.Generator().manual_seed(seed)
        n = before + visual + after
        self.hidden = torch.randn(n, WIDTH, generator=generator)
        self.kv = torch.randn(2, LAYERS, n, HEADS, DIM, generator=generator)
        self.start, self.visual = before, visual
        self.new = torch.randn(2, LAYERS, HEADS, DIM, generator=generator)  # K and V of the next token
        self.queries = torch.randn(LAYERS, 2 * HEADS, DIM, generator=generator)

    def admit(self, engine):
        return engine.admit(*self.kv, self.start, self.visual)

    def attention(self, kept):
        """What the next token sees of the kept tokens and of itself."""
        k, v = torch.cat([self.kv[:, :, kept], self.new.unsqueeze(2)], 2).transpose(2, 3)
        return scaled_dot_product_attention(self.queries.unsqueeze(2), k, v, enable_gqa=True).squeeze(2)

    def assert_decodes(self, engine, request, kept):
        out = engine.decode(request, self.queries, *self.new)
        torch.testing.assert_close(out, self.attention(kept), rtol=1e-5, atol=1e-6)


@pytest.fixture
def prototypes():
    return torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def engine(module, prototypes):
    return module.Engine(prototypes, layers=LAYERS, pages=14, page_size=PAGE, heads=HEADS, head_dim=DIM,
                         max_requests=2, max_tokens=128)


def test_an_unpruned_request_sees_everything(engine):
    prompt = Prompt(40)
    prompt.assert_decodes(engine, prompt.admit(engine), torch.arange(51))


def test_two_pruned_requests_of_different_sizes_see_what_prune_topk_keeps(engine, prototypes):
    prompts = [Prompt(40, seed=1), Prompt(23, before=9, after=1, seed=2)]
    ids = [p.admit(engine) for p in prompts]
    hidden, indices = engine.prune(ids, torch.cat([p.hidden for p in prompts]), [12, 5])
    at = 0
    for request, prompt, keep in zip(ids, prompts, (12, 5), strict=True):
        want, _, kept, _ = prune_topk(prompt.hidden[None], prototypes, keep, span_start=prompt.start,
                                      span_len=prompt.visual)
        n = kept.shape[1]
        assert torch.equal(hidden[at:at + n], want[0])
        first = 0 if prompt is prompts[0] else len(prompts[0].hidden)
        assert torch.equal(indices[at:at + n], kept[0] + first)
        assert engine.length(request) == n
        assert len(engine.pages(request)) == -(-n // PAGE)
        prompt.assert_decodes(engine, request, kept[0])
        at += n
    assert at == len(hidden)


def test_freed_pages_go_to_another_request(module, engine):
    first, second = Prompt(72, seed=3), Prompt(48, seed=4)
    a = first.admit(engine)
    held = set(engine.pages(a))
    with pytest.raises(module.OutOfPages, match="admit: needs 8 pages, free: 3"):
        second.admit(engine)
    kept = engine.prune([a], first.hidden, [16])[1].clone()
    assert engine.free_pages == 14 - 4
    b = second.admit(engine)
    assert set(engine.pages(b)) & held
    assert not set(engine.pages(a)) & set(engine.pages(b))
    first.assert_decodes(engine, a, kept)
    second.assert_decodes(engine, b, torch.arange(59))
    engine.release(a)
    engine.release(b)
    assert engine.free_pages == 14


def test_shrinking_later_keeps_what_pruning_at_once_would(engine, prototypes):
    prompt = Prompt(60, seed=5)
    request = prompt.admit(engine)
    engine.prune([request], prompt.hidden, [40])
    for keep in (21, 6):
        engine.shrink(request, keep)
    kept = prune_topk(prompt.hidden[None], prototypes, 6, span_start=prompt.start, span_len=60)[2][0]
    assert len(engine.pages(request)) == -(-len(kept) // PAGE)
    prompt.assert_decodes(engine, request, kept)


def test_no_visual_token_needs_to_stay(engine):
    prompt = Prompt(30, seed=6)
    request = prompt.admit(engine)
    text = torch.tensor([*range(5), *range(35, 41)])
    engine.prune([request], prompt.hidden, [30])
    engine.shrink(request, 0)
    prompt.assert_decodes(engine, request, text)
    rest, indices = engine.prune([prompt.admit(engine)], prompt.hidden, [0])
    assert torch.equal(indices, text)
    assert torch.equal(rest, prompt.hidden[text])


def test_decoding_goes_on_over_the_end_of_a_page(engine):
    prompt = Prompt(10, before=3, after=2)
    request = prompt.admit(engine)
    prompt.assert_decodes(engine, request, torch.arange(15))
    assert len(engine.pages(request)) == 2
    engine.decode(request, prompt.queries, *prompt.new)
    assert engine.length(request) == 17
    assert len(engine.pages(request)) == 3


PROMPT = Prompt(40)
BAD = {
    "unknown request": (lambda e, i: e.prune([i + 1], PROMPT.hidden, [3]), "prune: `request` is 1, allowed: a request"),
    "released request": (lambda e, i: e.decode(i + 7, PROMPT.queries, *PROMPT.new), "decode: `request` is 7"),
    "k above the span": (lambda e, i: e.prune([i], PROMPT.hidden, [41]), "prune: `keep` is 41, allowed: 0 to 40"),
    "k below zero": (lambda e, i: e.prune([i], PROMPT.hidden, [-1]), "prune: `keep` is -1, allowed: 0 to 40"),
    "named twice": (lambda e, i: e.prune([i, i], PROMPT.hidden, [3, 3]), "prune: `requests` is a list that names one"),
    "too many": (lambda e, i: e.prune([i, 1, 2], PROMPT.hidden, [3, 3, 3]), "prune: `requests` is 3, allowed: 1 to 2"),
    "hidden of other length": (lambda e, i: e.prune([i], PROMPT.hidden[1:], [3]), "prune: `hidden` is [50, 96]"),
    "hidden of other dtype": (lambda e, i: e.prune([i], PROMPT.hidden.double(), [3]), "prune: `hidden` is Double"),
    "no scores": (lambda e, i: e.shrink(i, 3), "shrink: `request` is one without scores"),
    "span past the end": (lambda e, i: e.admit(*PROMPT.kv, 20, 32), "admit: `span_len` is 32, allowed: 0 to 31"),
    "keys of other heads": (lambda e, i: e.admit(PROMPT.kv[0, :, :, :1], PROMPT.kv[1], 0, 1), "admit: `keys` is [3"),
    "query heads": (lambda e, i: e.decode(i, PROMPT.queries[:, :3], *PROMPT.new), "decode: `queries` is 3, allowed: a"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error_and_changes_nothing(engine, case):
    call, message = BAD[case]
    request = PROMPT.admit(engine)
    before = engine.pool.clone(), engine.pages(request), engine.length(request), engine.free_pages
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call(engine, request)
    assert torch.equal(engine.pool, before[0])
    assert (engine.pages(request), engine.length(request), engine.free_pages) == before[1:]
    PROMPT.assert_decodes(engine, request, torch.arange(51))


def test_no_page_for_the_next_token_changes_nothing(module, engine):
    full, prompt = Prompt(101, before=5, after=6), PROMPT
    request = full.admit(engine)
    assert engine.free_pages == 0
    before = engine.pool.clone()
    with pytest.raises(module.OutOfPages, match="decode: needs 1 pages, free: 0"):
        engine.decode(request, prompt.queries, *prompt.new)
    assert torch.equal(engine.pool, before)
    assert engine.length(request) == 112


@pytest.mark.skipif(not shutil.which("cmake") or not shutil.which("ninja"), reason="cmake or ninja is missing")
def test_the_program_without_python(cache):
    root = EXAMPLE.parents[1]
    env = {**os.environ, "PYTHONPATH": str(root)}
    build = cache / "program"
    for command in (["cmake", "-S", EXAMPLE, "-B", build, "-GNinja", f"-DPython3_EXECUTABLE={sys.executable}",
                     "-DCMAKE_CXX_FLAGS_RELEASE=-O1"], ["cmake", "--build", build, "-j1"], [build / "cpp_engine"]):
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "cpp_engine: ok\n"
