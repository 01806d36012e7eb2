"""Every CUDA C++ kernel of csrc/sources.txt, compiled by nvcc, and what the smoke program launches it with."""

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from ..environment import ROOT
from ..programs import kernels as sources
from . import sass

FLAGS = ("-std=c++17", "-O3", "-Icsrc/include")
RESERVED = 1024  # from CUDA 13 on, the static shared memory that is reported holds what the system reserves


@cache
def version() -> str:
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"V([\d.]+)", text)[-1]


def _compile(source: str, arch: str, folder: str) -> Path:
    target = Path(folder) / f"{Path(source).stem}-{Path(source).parent.name}.o"
    number = arch.removeprefix("sm_")
    done = subprocess.run(["nvcc", *FLAGS, "-gencode", f"arch=compute_{number},code={arch}", "-c", source, "-o",
                           str(target)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc {source}: {done.stderr.strip()}")
    return target


def _readable(names: Sequence[str]) -> list[str]:
    """Demangled, without namespaces and parameters: `score_kernel<ScoreTile<float, 4>>`."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [_short(line) for line in text.splitlines()]


def _short(name: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::|vtkernels::cuda::|vtkernels::|^void ", "", name)
    depth, end = 0, len(name)
    for i, letter in enumerate(name):  # the parameters begin at the first parenthesis outside of the template's
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            end = i
            break
    return re.sub(r"\(\w+\)(?=\w)", "", name[:end]).replace("> >", ">>")


def _examine(objects: Path, arch: str) -> dict[str, dict[str, Any]]:
    """By mangled name. `warps` by the kernel's launch bounds, 0 without."""
    used = sass.usage(sass.run(sass.tool("cuobjdump"), "--dump-resource-usage", objects))
    codes: dict[str, bytes] = {}
    threads: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        sass.run(sass.tool("cuobjdump"), "-xelf", "all", objects.resolve(), cwd=folder)
        for cubin in sorted(Path(folder).iterdir()):
            elf = cubin.read_bytes()
            codes |= {name: code for name, code in sass.text_sections(elf) if name in used}
            threads |= sass.launch_bounds(elf)
    reserved = RESERVED if int(version().split(".")[0]) >= 13 else 0
    return {name: {"warps": -(-threads.get(name, 0) // 32), **used[name],
                   "shared": max(0, used[name]["shared"] - reserved), **sass.figures(code)}
            for name, code in zip(codes, sass.disassemble(list(codes.values()), arch), strict=True)}


def _launches(objects: Sequence[Path], arch: str, folder: str) -> dict[str, tuple[int, int]]:
    """The most threads and dynamic shared memory of each kernel, by mangled name, in a run of the smoke program."""
    smoke = _compile("csrc/smoke/cuda.cu", arch, folder)
    recorder = _compile("benchmarks/static/recorder.cpp", arch, folder)
    program = str(Path(folder) / "smoke")
    subprocess.run(["nvcc", "-cudart", "none", "-o", program, *map(str, objects), str(smoke), str(recorder)],
                   check=True, capture_output=True)
    # Its checks fail, as nothing computes; what counts is what it launched until then.
    printed = subprocess.run([program], capture_output=True, text=True, timeout=120).stdout
    found: dict[str, tuple[int, int]] = {}
    for name, threads, shared in re.findall(r"^launch (\S+) (\d+) (\d+)$", printed, re.MULTILINE):
        most = found.get(name, (0, 0))
        found[name] = max(most[0], int(threads)), max(most[1], int(shared))
    return found


def all_figures(arch: str, only: Sequence[str] = (), launched: bool = True) -> dict[str, dict[str, Any]]:
    """By source and readable name. `only`: these sources. `launched`: with warps and dynamic shared memory as the smoke
    program launches them; a kernel that it does not launch has the warps of its bounds and static memory alone."""
    wanted = [s for s in sources() if not only or Path(s).name in only]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda s: _compile(s, arch, folder), wanted))
        launches = _launches(objects, arch, folder) if launched else {}
        by_source = [_examine(o, arch) for o in objects]
    figures: dict[str, dict[str, Any]] = {}
    for source, found in zip(wanted, by_source, strict=True):
        for mangled, name in zip(found, _readable(list(found)), strict=True):
            facts = found[mangled]
            threads, dynamic = launches.get(mangled, (32 * facts["warps"], 0))
            figures[f"{Path(source).name}/{name}"] = {
                **facts, "warps": -(-threads // 32), "shared": facts["shared"] + dynamic,
                "launched": mangled in launches}
    return figures
