"""Every Triton kernel with every shipped configuration, compiled as its launcher would launch it."""

import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any, NamedTuple

from ..environment import ROOT
from . import sass

sys.path.insert(0, str(ROOT / "tests"))  # the calls that the ahead-of-time tests compile

import aot
import aot_cases

PRODUCT = re.compile(r"tt\.dot .*?(inputPrecision = (\w+))? : tensor<\d+x\d+x(\w+)>")


class Kernel(NamedTuple):
    name: str
    case: aot_cases.Case
    launch: int  # of those that the case makes


def version() -> str:
    import triton
    return triton.__version__


def kernels(arch: str) -> Iterator[Kernel]:
    """Each specialisation once, under the first case that launches it. In float16 the kernels are those of bfloat16 but
    for the type in the matrix instructions, and are left out."""
    seen: set[str] = set()
    names: dict[str, int] = {}
    for case, compiled_for in aot_cases.cases():
        if compiled_for != arch or case.dtype == "float16":
            continue
        for i, launch in enumerate(_launches(case)):
            key = aot.specialised(launch).key(launch.kernel)
            if key in seen:
                continue
            seen.add(key)
            entry = f"{case.gpu}.{case.entry}" + (f".{case.variant}" if case.variant != "plain" else "")
            name = f"{case.op}/{launch.kernel.__name__}/{entry}/{case.dtype}"
            names[name] = names.get(name, 0) + 1
            yield Kernel(name + (f"/{names[name]}" if names[name] > 1 else ""), case, i)


@cache
def _launches(case: aot_cases.Case) -> list[Any]:
    return aot_cases.launches(case)


class Build(NamedTuple):
    facts: dict[str, Any]
    code: bytes


def build(kernel: Kernel, arch: str) -> Build:
    return build_launch(_launches(kernel.case)[kernel.launch], arch)


def build_launch(launch: Any, arch: str) -> Build:
    """Machine code, and what is known beside it. `product`: it multiplies tiles that the matrix units take."""
    compiled = aot.compiled(launch, arch)
    cubin = compiled.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        (used,) = sass.usage(sass.run(sass.tool("cuobjdump"), "--dump-resource-usage", file.name)).values()
    ((_, code),) = sass.text_sections(cubin)
    products = PRODUCT.findall(compiled.asm["ttir"])
    taken = any(dtype in ("f16", "bf16") or precision.startswith("tf32") for _, precision, dtype in products)
    shared = max(used["shared"], compiled.metadata.shared)
    return Build({"warps": compiled.metadata.num_warps, **used, "shared": shared, "product": taken}, code)


def examined(builds: Sequence[Build], arch: str) -> list[dict[str, Any]]:
    codes = sass.disassemble([b.code for b in builds], arch)
    return [{**b.facts, **sass.figures(code)} for b, code in zip(builds, codes, strict=True)]


def all_figures(arch: str, names: set[str] | None = None, processes: int | None = None) -> dict[str, dict[str, Any]]:
    """By name, compiled in `processes` processes (all cores). What Triton's cache holds is not compiled again."""
    wanted = [k for k in kernels(arch) if names is None or k.name in names]
    missing = sorted((names or set()) - {k.name for k in wanted})
    if missing:
        raise ValueError(f"no Triton kernel is called {', '.join(missing)}")
    os.environ.pop("TRITON_INTERPRET", None)
    with ProcessPoolExecutor(processes or os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        builds = list(pool.map(build, wanted, [arch] * len(wanted)))
    return {k.name: figures for k, figures in zip(wanted, examined(builds, arch), strict=True)}


def ptxas_version() -> str:
    text = sass.run(sass.tool("ptxas"), "--version")
    return re.findall(r"V([\d.]+)", text)[-1]
