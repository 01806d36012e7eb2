"""`python -m tests.abi [PYTHON:TORCH ...] [--wheel FILE] [--record]`: one wheel on several Pythons and torches.

Each pair gets a fresh environment with that torch, the one wheel of `make wheel`, and nothing of this checkout but the
tests, which run on its CPU kernels. A CUDA build of torch is installed without the gigabytes of CUDA: its libraries are
replaced by empty ones that report "no device", which is all that a run on the CPU asks of them. Printed last: a table.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from .reliability import record, suite_figure

ROOT = Path(__file__).parents[1]
# The lowest torch that the wheel claims, the newest, and what is newest for the oldest Python and for one with no GIL.
PAIRS = ("3.10:2.14.1", "3.11:2.10.0", "3.11:2.13.0", "3.12:2.15.0", "3.13:2.15.0", "3.13t:2.12.0")
# No safetensors, which the ops do not need: there is none for free-threaded Python 3.13.
PACKAGES = ("filelock", "typing-extensions", "sympy", "networkx", "jinja2", "fsspec", "setuptools", "numpy",
            "packaging", "pytest")
SOAK = """
import sys
import vtkernels
assert not sys._is_gil_enabled(), "an import has switched the GIL on"
sys.argv = ["tests.soak", "--seconds", "60"]
from tests.soak import main
sys.exit(main())
"""
TESTS = ("test_attend", "test_bad_input", "test_gather", "test_isolation", "test_isolation_packed", "test_merge",
         "test_messages", "test_paged", "test_pool", "test_prototype_scores", "test_prune_topk", "test_quantize",
         "test_rotate_keys", "test_select_diverse", "test_select_ragged", "test_select_segments", "test_select_topk")
CUDA = r"(cu|nv|nccl|__cuda)\w*"


class Failure(RuntimeError):
    """What went wrong with a pair."""


class Environment(NamedTuple):
    folder: Path
    variables: dict[str, str]

    def run(self, *command: str, cwd: Path | None = None) -> str:
        variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run([str(self.folder / "bin/python"), *command], cwd=cwd, text=True, capture_output=True,
                              env={**variables, **self.variables})
        if done.returncode:
            last = (done.stdout.strip() + "\n" + done.stderr.strip()).strip().splitlines()[-12:]
            raise Failure(f"{' '.join(command)[:200]} ends with {done.returncode}\n" + "\n".join(last))
        return done.stdout


def find_python(version: str) -> str | None:
    """An interpreter of that version: of pyenv, or in the PATH."""
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in (*sorted(home.glob(f"{version}*/bin/python"), reverse=True), shutil.which(f"python{version}")):
        code = "import sys, sysconfig; print('%d.%d' % sys.version_info[:2] + 't' * bool(" \
               "sysconfig.get_config_var('Py_GIL_DISABLED')))"
        done = path and subprocess.run([str(path), "-c", code], capture_output=True, text=True)
        if done and done.stdout.strip() == version:
            return str(path)
    return None


def symbols(library: Path, *options: str) -> set[str]:
    listed = subprocess.run(["nm", "-D", *options, str(library)], capture_output=True, text=True).stdout
    return {line.split()[-1].partition("@")[0] for line in listed.splitlines() if line.strip()}


def stub_cuda(torch: Path, folder: Path) -> dict[str, str]:
    """Stand-ins for the CUDA libraries that torch's own are linked against and that are not there. x86-64."""
    libraries = list((torch / "lib").glob("*.so*"))
    needed = {name for path in libraries for name in re.findall(
        r"NEEDED.*\[(.+)\]", subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True).stdout)}
    missing = {n for n in needed if re.match(r"lib(cu|nv|nccl)", n)} - {path.name for path in libraries}
    if not missing:
        return {}
    folder.mkdir()
    undefined = set().union(*(symbols(path, "--undefined-only") for path in libraries))
    defined = set().union(*(symbols(path, "--defined-only") for path in libraries))
    calls = sorted(name for name in undefined - defined if re.fullmatch(CUDA, name))
    # 100: no device. What the compiler's start-up code calls must return nothing.
    lines = [".text", *(f".globl {n}\n{n}:" for n in calls if not n.startswith("__")), "movl $100, %eax", "ret",
             *(f".globl {n}\n{n}:" for n in calls if n.startswith("__")), "xorl %eax, %eax", "ret"]
    (folder / "symbols.s").write_text("\n".join(lines) + "\n")
    (folder / "empty.s").write_text(".text\n")
    for name in ("symbols", "empty"):
        link = ["gcc", "-shared", "-Wl,-z,noexecstack", "-o", f"{name}.so", f"{name}.s"]
        subprocess.run(link, cwd=folder, check=True)
    for name in missing:
        (folder / name).symlink_to("empty.so")
    # Preloaded under a name of its own: the linker asks libraries of the right name for versions of their symbols.
    return {"LD_LIBRARY_PATH": str(folder), "LD_PRELOAD": str(folder / "symbols.so")}


def make_environment(python: str, torch: str, wheel: Path, folder: Path) -> Environment:
    shutil.rmtree(folder, ignore_errors=True)
    done = subprocess.run([python, "-m", "venv", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"{python} -m venv: {done.stderr}")
    environment = Environment(folder, {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    environment.run("-m", "pip", "install", "-q", "--no-deps", f"torch=={torch}")
    environment.run("-m", "pip", "install", "-q", "--only-binary=:all:", *PACKAGES)
    environment.run("-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel))
    (package,) = folder.glob("lib/python3*/site-packages/torch")
    return Environment(folder, {**environment.variables, **stub_cuda(package, folder / "stubs")})


def suite(environment: Environment, folder: Path, free_threaded: bool) -> str:
    """The tests on the installed package, away from the checkout; without a GIL also many threads at once."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    where = environment.run("-c", "import vtkernels; print(vtkernels.__file__)", cwd=folder).strip()
    if not Path(where).is_relative_to(environment.folder):
        raise Failure(f"the tests would run on {where}, allowed: the wheel's files")
    out = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{t}.py" for t in TESTS), cwd=folder)
    outcome = re.sub(r" in [\d.]+s.*", "", suite_figure(out))
    if free_threaded:
        outcome += "; without the GIL: " + environment.run("-c", SOAK, cwd=folder).strip().splitlines()[-1]
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.abi", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", metavar="PYTHON:TORCH", default=PAIRS, help=f"default: {' '.join(PAIRS)}")
    parser.add_argument("--wheel", type=Path, help="the newest of dist/ by default")
    parser.add_argument("--scratch", type=Path, default=ROOT / "build/abi")
    parser.add_argument("--record", action="store_true", help="put the table into docs/reliability.json")
    options = parser.parse_args()
    wheels = [options.wheel] if options.wheel else sorted((ROOT / "dist").glob("*-py3-none-linux*.whl"))
    if not wheels:
        parser.error("dist/ has no wheel with native libraries, allowed: what `make wheel` builds")
    options.scratch.mkdir(parents=True, exist_ok=True)
    failed, lines = 0, []
    for pair in options.pairs:
        version, _, torch = pair.partition(":")
        python, begin = find_python(version), time.monotonic()
        if python is None:
            lines.append((pair, "not run: there is no such Python here"))
            continue
        try:
            name = pair.replace(":", "-")
            environment = make_environment(python, torch, wheels[-1].resolve(), options.scratch.resolve() / name)
            built = environment.run("-c", "import torch; print(torch.__version__)").strip()
            got = suite(environment, options.scratch.resolve() / f"{name}-tests", free_threaded=version.endswith("t"))
            got = f"torch {built}: {got}"
        except Failure as failure:
            failed += 1
            got = f"FAILED: {failure}"
        print(f"{pair}: {got} ({time.monotonic() - begin:.0f} s)", flush=True)
        lines.append((pair, got))
        shutil.rmtree(options.scratch / name, ignore_errors=True)
    print(f"\n{wheels[-1].name}")
    for pair, got in lines:
        print(f"Python {pair.partition(':')[0]:<6} {got.splitlines()[0]}")
        if options.record:
            record(f"one wheel, Python {pair.partition(':')[0]}, torch {pair.partition(':')[2]}", got.splitlines()[0],
                   "make test-abi")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
