"""`python -m vtkernels`: commands, messages, exit codes."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import vtkernels
from vtkernels import _dispatch, _env, prototypes
from vtkernels.__main__ import main

ROOT = Path(__file__).resolve().parents[1]


def exit_code(argv: list[str]) -> int:
    """Of a run that may end in argparse's own exit."""
    try:
        return main(argv)
    except SystemExit as stop:
        return int(stop.code or 0)


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("argv", "code"), [
    ([], 2), (["nonsense"], 2), (["explain"], 2), (["explain", "nonsense"], 2), (["demo", "--keep", "0"], 2),
    (["demo", "--keep", "nan"], 2), (["demo", "--keep", "x"], 2), (["demo", "--seed", "-1"], 2),
    (["demo", "--images", "a.png", "--features", "b"], 2), (["demo", "--images", "nowhere.png"], 1),
    (["demo", "--features", "nowhere.safetensors"], 1), (["demo", "--codebook", "nowhere.safetensors"], 1),
    (["build-prototypes", "--features", "nowhere", "--out", "x"], 1), (["--help"], 0), (["--version"], 0),
    (["demo", "--help"], 0), (["build-prototypes", "--help"], 0),
])
def test_exit_codes(argv, code, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert exit_code(argv) == code
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    if code == 1:
        assert errors.startswith("vtkernels: error: ")
        assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_process_exit_code_and_one_line():
    done = python("-m", "vtkernels", "demo", "--images", "nowhere.png")
    assert done.returncode == 1
    assert done.stderr == "vtkernels: error: nowhere.png: no such file or folder\n"
    assert done.stdout == ""


def test_import_stays_light():
    """Importing the package, or its command line, loads none of the demo's packages."""
    code = ("import sys, vtkernels, vtkernels.prototypes, vtkernels.__main__; "
            "print([m for m in ('matplotlib', 'PIL', 'skimage', 'sklearn', 'scipy', 'triton') if m in sys.modules])")
    done = python("-c", code)
    assert done.stdout.strip() == "[]", done.stderr


def test_info(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for part in (vtkernels.__version__, torch.__version__, "triton", "C++ compiler", "nvcc", "_C_cpu", "_C_cuda"):
        assert part in text
    for name, _, meaning in _env.TABLE:
        assert name in text
        assert meaning in text


def test_info_shows_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("VTKERNELS_TUNING_DIR", "some/folder")
    assert main(["info"]) == 0
    assert "'some/folder'" in capsys.readouterr().out


@pytest.mark.parametrize("op", sorted(_dispatch.STAGES))
def test_explain(op, capsys):
    assert main(["explain", op]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{op} on cpu: {_dispatch.choose('cpu')}\n")
    assert f"{op} on cuda" in text
    for backend in _dispatch.ORDER["cuda"]:
        assert f"\n  {backend}: " in text


def test_explain_with_a_backend_that_cannot_run(capsys, monkeypatch):
    monkeypatch.setattr(_env, "BACKEND", "cuda")
    assert main(["explain", "prune_topk"]) == 1
    assert "VTKERNELS_BACKEND=cuda cannot run here: the inputs are on cpu" in capsys.readouterr().err


def test_bench_passes_its_arguments_on(monkeypatch):
    got = []
    module = type(sys)("benchmarks.run")
    module.main = lambda argv: got.append(argv) or 3
    monkeypatch.setitem(sys.modules, "benchmarks.run", module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("pathlib.Path.is_file", lambda self: True)
    assert main(["bench", "--op", "prune_topk", "--help"]) == 3
    assert got == [["--op", "prune_topk", "--help"]]


def test_bench_outside_a_checkout(capsys, monkeypatch):
    monkeypatch.setattr("pathlib.Path.is_file", lambda self: False)
    assert main(["bench"]) == 1
    assert "bench needs a source checkout" in capsys.readouterr().err


def test_build_prototypes_from_features(tmp_path, capsys):
    features = torch.randn(2, 50, 12, generator=torch.Generator().manual_seed(0)).half()
    safetensors.torch.save_file({"features": features}, str(tmp_path / "f.safetensors"))
    argv = ["build-prototypes", "--features", str(tmp_path / "f.safetensors"), "--count", "7", "--seed", "5"]
    assert main([*argv, "--out", str(tmp_path / "book")]) == 0
    assert "7 prototypes" in capsys.readouterr().out
    book = prototypes.load(tmp_path / "book", dim=12)
    assert torch.equal(book.prototypes, prototypes.build_kmeans(features.flatten(0, 1), 7, seed=5).half())
    assert "seed 5" in book.metadata["recipe"]
    assert main(argv) == 1
    assert main([*argv, "--out", str(tmp_path / "more"), "--count", "101"]) == 1
    assert "`count` is 101, allowed: 1 to 100" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


def test_attention_example(capsys):
    hidden, cache = runpy.run_path(str(ROOT / "examples" / "attention_layer.py"))["main"]()
    assert hidden.shape == (2, 12 + 144 + 20, 256)
    assert [t.shape for t in cache] == [(2, 8, 12 + 144 + 20 + 1, 32)] * 2
    assert "608 tokens in, 176 out" in capsys.readouterr().out
