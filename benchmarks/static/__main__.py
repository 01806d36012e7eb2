"""`python -m benchmarks.static`: compile every kernel, compare with the committed table, or write it anew."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from . import cuda_kernels, table, triton_kernels


def versions() -> dict[str, str]:
    return {"triton": triton_kernels.version(), "ptxas": triton_kernels.ptxas_version(), "nvcc": cuda_kernels.version()}


def measure(arch: str, kinds: Sequence[str] = table.KINDS) -> dict[str, Any]:
    """A table of the kernels of these kinds; those of the other kind are the committed ones."""
    compiler: dict[str, Callable[[str], dict]] = {
        "triton": triton_kernels.all_figures, "cuda": cuda_kernels.all_figures}
    found = {kind: {name: table.with_occupancy(f, arch) for name, f in compiler[kind](arch).items()} for kind in kinds}
    if set(kinds) == set(table.KINDS):
        return {"arch": arch, "versions": versions(), **found}
    committed = table.load(arch)
    kept = {v: committed["versions"][v] for kind in table.KINDS if kind not in kinds for v in table.COMPILERS[kind]}
    return {**committed, "versions": {**versions(), **kept}, **found}


def complete(arch: str) -> dict[str, Any]:
    """The committed table with the Triton kernels that it lacks, and without those that are gone."""
    committed = table.load(arch)
    names = {k.name for k in triton_kernels.kernels(arch)}
    found = triton_kernels.all_figures(arch, names - set(committed["triton"]))
    held = {name: f for name, f in committed["triton"].items() if name in names}
    return {**committed, "triton": held | {name: table.with_occupancy(f, arch) for name, f in found.items()}}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 where a kernel is beyond the limits or worse than the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.static", description=__doc__.splitlines()[0])
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--write", action="store_true", help="write benchmarks/static/<arch>.json and docs/kernels.md")
    group.add_argument("--check", action="store_true", help="compare with the committed table (what happens anyway)")
    group.add_argument("--page", action="store_true", help="write docs/kernels.md from the committed table alone")
    parser.add_argument("--missing", action="store_true", help="compile only the Triton kernels that the table lacks")
    parser.add_argument("--only", choices=table.KINDS, help="compile these alone and keep the others as they are")
    parser.add_argument("--arch", default="sm_90", choices=["sm_90"])
    options = parser.parse_args(argv)
    if options.page:
        table.write_page(table.load(options.arch))
        return 0
    start = time.monotonic()
    kinds = [options.only] if options.only else table.KINDS
    now = complete(options.arch) if options.missing else measure(options.arch, kinds)
    if options.write:
        wrong = [line for kind in table.KINDS for name, f in now[kind].items() for line in table.limits(
            name, f, options.arch)]
        table.path(options.arch).write_text(table.dumps(now))
        table.write_page(now)
    else:
        committed = table.load(options.arch)
        wrong = [line for kind in table.KINDS for line in table.compare(kind, now[kind], committed, now["versions"])]
        wrong += [f"{name}: in the table, but no longer a kernel" for kind in table.KINDS
                  for name in sorted(set(committed[kind]) - set(now[kind]))]
    print("\n".join([*wrong, table.summary(now), f"{time.monotonic() - start:.0f} s"]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
