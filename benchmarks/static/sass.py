"""What machine code says of a kernel: widths of its memory accesses, matrix instructions, local memory, its hot loop.

Every instruction counts once for each warp and all of its 32 lanes, predicated ones too. Bytes are those of global and
generic loads and stores (`LDG`, `LDGSTS`, `LD`, `STG`, `ST`); bulk copies carry their size in a register and are only
counted. Operations are those of the matrix units and of the fp32 and packed half pipes, two for a multiply-add.
"""

import math
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
MATRIX = re.compile(r"^(HGMMA|HMMA|IMMA|QGMMA|QMMA|IGMMA|DMMA|BGMMA|OMMA)\.")
BULK = re.compile(r"^(UBLKCP|UBLKRED|UTMALDG|UTMASTG|UTMAREDG)")
MAX_THREADS, SIZED = 0x05, 0x04  # of .nv.info: the attribute, and the form that has a size and a value
LANES = 32
WARPGROUP = 4
FLOPS = {"FFMA": 2, "FADD": 1, "FMUL": 1, "HFMA2": 4, "HADD2": 2, "HMUL2": 2}  # of a lane


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    opcode: str
    operands: str


@cache
def tool(name: str) -> Path:
    """The tools that Triton brings along: a toolkit's own may be older than the machine code, or absent."""
    import triton
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def run(*words: str | Path, cwd: str | None = None) -> str:
    return subprocess.run([str(w) for w in words], capture_output=True, text=True, check=True, cwd=cwd).stdout


def sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a cubin, which is a little-endian ELF64."""
    (offset,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, offset + i * size) for i in range(count)]
    for header in headers:
        name = elf[headers[names_at][4] + header[0]:].split(b"\0", 1)[0].decode()
        yield name, elf[header[4]:header[4] + header[5]]


def text_sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and machine code of each function."""
    return ((name.removeprefix(".text."), code) for name, code in sections(elf) if name.startswith(".text."))


def launch_bounds(elf: bytes) -> dict[str, int]:
    """The most threads of a block of each function that says so (`__launch_bounds__`)."""
    found = {}
    for name, content in sections(elf):
        at = 0 if name.startswith(".nv.info.") else len(content)
        while at + 4 <= len(content):
            form, attribute, size = struct.unpack_from("<BBH", content, at)
            if attribute == MAX_THREADS:
                found[name.removeprefix(".nv.info.")] = math.prod(struct.unpack_from("<3I", content, at + 4))
            at += 4 + (size if form == SIZED else 0)
    return found


def disassemble(codes: Sequence[bytes], arch: str) -> list[list[Instruction]]:
    """All functions in one run of nvdisasm, which takes half a second to start."""
    if not codes:
        return []
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(codes))
        file.flush()
        image = arch.upper().replace("_", "") + ("a" if arch in ("sm_90", "sm_100") else "")
        text = run(tool("nvdisasm"), "--binary", image, file.name)
    found: list[list[Instruction]] = [[] for _ in codes]
    ends: list[int] = []
    for code in codes:
        ends.append(len(code) + (ends[-1] if ends else 0))
    at = 0
    for line in text.splitlines():
        if match := INSTRUCTION.search(line):
            address, predicate, opcode, operands = match.groups()
            while int(address, 16) >= ends[at]:
                at += 1
            found[at].append(Instruction(int(address, 16), (predicate or "").strip(), opcode, operands))
    return found


def width(opcode: str) -> int:
    """Bytes of one lane."""
    for part in opcode.split("."):
        if part in ("128", "64", "32"):
            return int(part) // 8
        if part in ("U16", "S16", "U8", "S8"):
            return int(part[1:]) // 8
    return 4


def matrix_flops(opcode: str) -> int:
    """Operations of one warp: `HMMA.16816` is 16 x 8 x 16, `HGMMA.64x128x16` the same of four warps together."""
    shape = opcode.split(".")[1]
    if match := re.fullmatch(r"(\d+)x(\d+)x(\d+)", shape):
        m, n, k = map(int, match.groups())
        return 2 * m * n * k // WARPGROUP
    if match := re.fullmatch(r"(16|8)8(4|8|16|32|64)", shape):
        return 2 * int(match[1]) * 8 * int(match[2])
    raise ValueError(f"matrix instruction {opcode}: unknown shape {shape}")


def base(opcode: str) -> str:
    return opcode.split(".")[0]


def loaded(i: Instruction) -> int:
    return width(i.opcode) * LANES if base(i.opcode) in ("LDG", "LDGSTS", "LD") else 0


def stored(i: Instruction) -> int:
    return width(i.opcode) * LANES if base(i.opcode) in ("STG", "ST") else 0


def flops(i: Instruction) -> int:
    return matrix_flops(i.opcode) if MATRIX.match(i.opcode) else FLOPS.get(base(i.opcode), 0) * LANES


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The bodies between a backward branch and its target, the shortest first."""
    spans = set()
    for i in code:
        target = re.search(r"0x([0-9a-f]+)", i.operands)
        if base(i.opcode) == "BRA" and target and int(target[1], 16) < i.address:
            spans.add((int(target[1], 16), i.address))
    ordered = sorted(spans, key=lambda span: (span[1] - span[0], span))
    return [[i for i in code if first <= i.address <= last] for first, last in ordered]


def hot_loop(code: list[Instruction]) -> dict[str, int]:
    """Bytes and operations of one warp in one trip of the loop that matters: the shortest one that holds half of the
    multiply-adds, of the matrix units where there are such, and moves something; without such a loop, the one that
    holds no other and moves most. A loop inside it counts once. It may hold a path for aligned rows beside one for
    others: only accesses of the widest kind count, which are those of the aligned path."""
    bodies = loops(code)
    matrix = any(MATRIX.match(i.opcode) for i in code)

    def multiplied(body: list[Instruction]) -> int:
        return sum(flops(i) for i in body if (MATRIX.match(i.opcode) if matrix else base(i.opcode) == "FFMA"))

    half = max(1, multiplied(code) // 2)
    inner = [b for b in bodies if not any(o is not b and b[0].address <= o[0].address and o[-1].address <= b[-1].address
                                          for o in bodies)]
    body = next((b for b in bodies if multiplied(b) >= half and _moved(b)), None) or max(inner, key=_moved, default=[])
    found = {"bytes": _moved(body), "flops": multiplied(body)}
    return found if any(found.values()) else {}


def _moved(body: list[Instruction]) -> int:
    """Loads of the widest kind and stores of the widest kind."""
    total = 0
    for size in (loaded, stored):
        sizes = [size(i) for i in body]
        total += sum(s for s in sizes if s == max(sizes))
    return total


def _widths(code: list[Instruction], size: Any) -> dict[str, int]:
    counted = Counter(size(i) // LANES for i in code if size(i))
    return {str(w): counted[w] for w in sorted(counted, reverse=True)}


def figures(code: list[Instruction]) -> dict[str, Any]:
    """What the table keeps of a function's code."""
    code = [i for i in code if i.predicate != "@!PT"]
    matrix = Counter(i.opcode for i in code if MATRIX.match(i.opcode))
    return {
        "loads": _widths(code, loaded), "stores": _widths(code, stored),
        "bulk": sum(bool(BULK.match(i.opcode)) for i in code), "matrix": dict(sorted(matrix.items())),
        "local": sum(base(i.opcode) in ("LDL", "STL") for i in code), "loop": hot_loop(code),
    }


def usage(text: str) -> dict[str, dict[str, int]]:
    """Registers, stack and static shared memory of each function in a `cuobjdump --dump-resource-usage`."""
    found = {}
    for name, line in re.findall(r"Function (\S+?):\s*\n\s*(REG:.*)", text):
        values = {k: int(v) for k, v in re.findall(r"([A-Z]+):(\d+)", line)}
        found[name] = {"registers": values["REG"], "stack": values["STACK"] + values["LOCAL"],
                       "shared": values["SHARED"]}
    return found
